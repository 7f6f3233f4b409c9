"""A run's statement, read back: what `privacy.json` says, as values."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import Spent
from common.privacy.events import DpSgdEvent, Event, from_json, merged

FIELDS = (
    "private",
    "statement",
    "mechanism",
    "run",
    "privacy_unit",
    "neighboring_relation",
    "sampling_method",
    "accountant",
    "delta",
    "epsilon_max",
    "epsilon_max_rdp",
    "max_grad_norm",
    "metrics",
    "charged",
    "ledger",
    "floating_point",
    "status",
    "not_protected",
    "refusals",
    "absent",
    "joined_late",
    "bundles",
    "clients",
    "versions",
)


# The values of "charged" in a privacy statement, either the rounds that were sent or all that were planned.
_DIGEST = re.compile("([0-9a-f]{64})?")
CHARGED = ("rounds sent", "the whole plan, because the run stopped early")


@dataclass(frozen=True)
class ClientStatement:
    """What a run states of one client.

    Attributes:
        spent: Both bounds.
        rounds: Rounds charged.
        closing: Whether the closing counts are charged.
        num_units: Declared size.
        events: Part of the data -> events, merged.
        noises: Noise multipliers of the training events, also of those without a step.
        head: Id of its ledger, number and hash of the entry it ended with; None if there is none.
    """

    spent: Spent
    rounds: int
    closing: bool
    num_units: int
    events: dict[str, tuple[Event, ...]]
    noises: frozenset[float]
    head: tuple[str, int, str] | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "ClientStatement":
        """Read one client's part.

        Raises:
            PrivacyError: It holds something else.
        """
        _check(found, {"rounds": int, "closing": bool, "num_units": int, "events": dict})
        spent = Spent(_number(found, "epsilon"), _number(found, "epsilon_rdp"))
        events = {part: [from_json(event) for event in listed] for part, listed in found["events"].items()}
        noises = {event.noise_multiplier for event in events["training"] if isinstance(event, DpSgdEvent)}
        head = None
        if "ledger" in found:
            _check(found["ledger"], {"id": str, "seq": int, "head": str})
            head = (found["ledger"]["id"], found["ledger"]["seq"], found["ledger"]["head"])
        by_part = {part: merged(listed) for part, listed in events.items()}
        return cls(spent, found["rounds"], found["closing"], found["num_units"], by_part, frozenset(noises), head)


@dataclass(frozen=True)
class PrivacyStatement:
    """What a run states.

    Attributes:
        run: Name of the run.
        mechanism: Who adds the noise.
        delta: What epsilon is for.
        spent: Both bounds of the client that is worst off.
        complete: Whether the run went to its end, planned or chosen.
        whole_plan: Whether the whole plan is charged, because the run stopped early.
        simulated: Whether the clients are a simulation's.
        clients: By name.
        joined_late: First round of each client that came late.
        text: Everything, as it was written.
    """

    run: str
    mechanism: str
    delta: float
    spent: Spent
    complete: bool
    whole_plan: bool
    simulated: bool
    clients: dict[str, ClientStatement]
    joined_late: dict[str, int]
    text: dict[str, Any]

    @classmethod
    def of(cls, found: dict[str, Any]) -> "PrivacyStatement":
        """Read a statement of a private run.

        Raises:
            PrivacyError: A field is missing or holds something else.
        """
        missing = [name for name in FIELDS if name not in found]
        if missing:
            raise PrivacyError(f"it lacks {', '.join(missing)}")
        texts = ("statement", "mechanism", "run", "charged", "ledger", "status")
        _check(found, dict.fromkeys(texts, str) | {"clients": dict, "refusals": dict, "metrics": dict})
        _check(found, {"absent": int, "joined_late": dict, "bundles": dict})
        if any(type(first) is not int or first < 1 for first in found["joined_late"].values()):
            raise PrivacyError("joined_late is not of the kind that a run writes")
        for name, bundle in found["bundles"].items():
            if name not in found["clients"] or type(bundle) is not str or not _DIGEST.fullmatch(bundle):
                raise PrivacyError("bundles is not of the kind that a run writes")
        if found["charged"] not in CHARGED or found["status"] not in ("complete", "interrupted"):
            raise PrivacyError("it does not say what was charged, or whether the run is complete")
        if not found["clients"]:
            raise PrivacyError("it is about no client")
        return cls(
            run=found["run"],
            mechanism=found["mechanism"],
            delta=_number(found, "delta"),
            spent=Spent(_number(found, "epsilon_max"), _number(found, "epsilon_max_rdp")),
            complete=found["status"] == "complete",
            whole_plan=found["charged"] != CHARGED[0],
            simulated=found["ledger"].startswith("simulated"),
            clients={name: ClientStatement.of(client) for name, client in found["clients"].items()},
            joined_late=found["joined_late"],
            text=found,
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in which every name stands once.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): is this the folder of a run?") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a JSON file as a run writes it ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is not a JSON file as a run writes it: it holds no named values")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _check(found: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if type(found[name]) is not kind:
            raise PrivacyError(f"{name} is not of the kind that a run writes")


def _number(found: Mapping[str, Any], name: str) -> float:
    if type(found[name]) not in (int, float):
        raise PrivacyError(f"{name} is no number")
    return float(found[name])
