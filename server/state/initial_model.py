"""Privacy of a run that started from the model of an earlier one."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from common.errors import ConfigError, PrivacyError
from common.inference.earlier_model import EarlierModel
from common.privacy.accounting import Spent, spent_by
from common.privacy.events import Event, as_json, from_json, merged

INITIAL_FILE = "initial.json"
_MAX_PAIRS = 64
OPEN_START = "; STARTED FROM A MODEL THAT IS NOT PRIVATE: the images of that run are not protected"
PRIVATE_START = "; started from a private model, whose images spent epsilon there too"
History = tuple[Event, ...]


def facts_of(earlier: EarlierModel) -> dict[str, Any]:
    """Return what a run states of the earlier one, as values for JSON.

    `histories` holds the events of one unit in the earlier run, and in those that it started from itself, one list for
    each different history. It is None where they are not known.
    """
    card, statement = earlier.card, earlier.statement
    # A model may come without its statement. Its card then still says what it started from.
    private = card.private_from_the_start and _chain_is_private(statement)
    return {
        "model_sha256": card.model_sha256,
        "private": private,
        "mechanism": card.mechanism,
        "privacy_unit": None if statement is None else statement.get("privacy_unit"),
        "epsilon_max": card.epsilon_max,
        "delta": card.delta,
        "histories": _histories(statement) if private and statement is not None else None,
    }


def _chain_is_private(statement: Mapping[str, Any] | None) -> bool:
    before = (statement or {}).get("initial_model")
    return before is None or bool(before["private"])


def _histories(statement: Mapping[str, Any]) -> list[list[dict[str, Any]]] | None:
    own = histories_of(client["events"] for client in statement["clients"].values())
    # A statement that was edited, or borrowed from another run, must not lower the figure of both.
    largest = max((spent_by(history, delta=statement["delta"]).pld for history in own), default=0.0)
    if not math.isclose(largest, statement["epsilon_max"], rel_tol=1e-6):
        raise ConfigError("the privacy statement beside the earlier model has another epsilon than its events")
    if (before := statement.get("initial_model")) is not None:
        if before["histories"] is None or before["privacy_unit"] != statement["privacy_unit"]:
            return None
        own = _pairs([tuple(map(from_json, history)) for history in before["histories"]], own)
    return None if len(own) > _MAX_PAIRS else [list(map(as_json, history)) for history in own]


def histories_of(clients: Iterable[Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[History]:
    """Return the different histories of a unit in the `events` of each client.

    A unit was either trained on or held out. A later run may have split the units in another way.
    """
    found = {
        tuple(merged(from_json(event) for event in events)): None for parts in clients for events in parts.values()
    }
    return [history for history in found if history]


def _pairs(first: Sequence[History], second: Sequence[History]) -> list[History]:
    return list({tuple(merged((*one, *other))): None for one, other in product(first, second)})


def composed(facts: Mapping[str, Any], statement: Mapping[str, Any], *, fresh: bool = False) -> Spent | None:
    """Return the largest epsilon of a unit that was in both runs.

    None where it is not known.

    Args:
        facts: See `facts_of`.
        statement: Privacy statement of the new run.
        fresh: See `spent_by`.

    Raises:
        PrivacyError: The accountants disagree.
    """
    # Groups of the two runs may differ. Then a group of one has images of several groups of the other.
    if (
        facts["histories"] is None
        or facts["privacy_unit"] != statement["privacy_unit"]
        or facts["privacy_unit"] == "group"
    ):
        return None
    before = [tuple(map(from_json, history)) for history in facts["histories"]]
    both = _pairs(before, histories_of(client["events"] for client in statement["clients"].values()))
    if not both or len(both) > _MAX_PAIRS:
        return None
    # The figure stands beside the new run's delta, and an epsilon at a larger one would be too small.
    delta = min(facts["delta"], statement["delta"])
    try:
        spent = [spent_by(history, delta=delta, fresh=fresh) for history in both]
    except ConfigError:
        return None
    return Spent(max(one.pld for one in spent), max(one.rdp for one in spent))


def stated_start(
    facts: Mapping[str, Any], statement: Mapping[str, Any], *, fresh: bool = False
) -> tuple[dict[str, Any], str]:
    """Return a statement's part about the earlier run.

    The second text ends the statement's sentence.

    Raises:
        PrivacyError: The accountants disagree.
    """
    if not facts["private"]:
        return dict(facts), OPEN_START
    if not statement["private"]:
        return dict(facts), ""
    both = composed(facts, statement, fresh=fresh)
    if both is None:
        text = "what both cost an image of both is not known here, its holder's ledger says it"
        return dict(facts) | {"composed_epsilon": None}, f"; started from a private model: {text}"
    block = dict(facts) | {"composed_epsilon": both.pld, "composed_epsilon_rdp": both.rdp}
    unit = statement["privacy_unit"]
    return block, f"; started from a private model: each {unit} of both runs has epsilon <= {both.pld:.4f}"


def keep_facts(
    folder: Path, earlier: EarlierModel | None, write: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any] | None:
    """Return what is stated of a run's start, stored in its folder.

    Args:
        folder: Folder of the run.
        earlier: The model that it starts from; None if it starts anew, or goes on from a checkpoint.
        write: Writes a JSON file of the run by its name.

    Raises:
        ConfigError: The model is not the one that the run began from.
    """
    file = folder / INITIAL_FILE
    stored: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if earlier is None:
        return stored
    facts: dict[str, Any] = json.loads(json.dumps(facts_of(earlier)))
    if stored is not None and stored != facts:
        raise ConfigError(f"{earlier.folder} is not the model that this run began from: restore it, or start a new run")
    if stored is None:
        write(INITIAL_FILE, facts)
    return facts


def wrong_start(statement: Mapping[str, Any], before: str | None) -> str:
    """Return what is wrong with a statement's part about its start.

    It is computed anew from the events; the text is empty if nothing is wrong. `before` is the sentence up to that
    part, None if it is not known.

    Raises:
        PrivacyError: It is not of the kind that a run writes, or the accountants disagree.
    """
    try:
        stated = statement["initial_model"]
        facts = {key: value for key, value in stated.items() if not key.startswith("composed_")}
        expected, end = stated_start(facts, statement, fresh=True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PrivacyError("initial_model is not of the kind that a run writes") from None
    if not statement["statement"].endswith(end):
        return "the sentence of the statement says something else of the model that the run started from"
    # A sentence that only ends well could say anything in its middle.
    if before not in (None, statement["statement"].removesuffix(end)):
        return f"the statement says {statement['statement']!r}, this run gives {before + end!r}"
    for key in expected.keys() - facts.keys() | stated.keys() - facts.keys():
        found, figure = stated.get(key), expected.get(key)
        if found != figure and not (found and figure and math.isclose(found, figure, rel_tol=1e-6)):
            return f"initial_model says {key} {found!r}, its events have {figure!r}"
    return ""
