"""Privacy statement of a run, read from `privacy.json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import Spent
from common.privacy.events import CountsEvent, DpSgdEvent, Event, from_json, merged

_TEXTS = ("statement", "mechanism", "run", "charged", "ledger", "status")
_OBJECTS = ("clients", "refusals", "metrics", "joined_late", "bundles")
_TERMS = ("private", "privacy_unit", "neighboring_relation", "sampling_method", "accountant", "max_grad_norm")
_OTHERS = ("delta", "epsilon_max", "epsilon_max_rdp", "absent", "floating_point", "not_protected", "versions")
# Every private run writes all of these fields.
FIELDS = (*_TEXTS, *_OBJECTS, *_TERMS, *_OTHERS)
# SHA-256 of a bundle, or empty.
_DIGEST = re.compile("([0-9a-f]{64})?")
# Values of "charged" in a privacy statement, for the rounds that were sent and for all that were planned.
CHARGED = ("rounds sent", "the whole plan, because the run stopped early")


@dataclass(frozen=True)
class ClientStatement:
    """Part of a privacy statement about one client.

    Attributes:
        spent: Stated epsilon, by both accountants.
        rounds: Number of rounds charged.
        closing: Whether the closing counts are charged.
        num_units: Declared number of units.
        events: Part of the data -> stated events, merged.
        noises: Noise multipliers of the training events, including events of no steps.
        samplers: Noise samplers of the same events.
        label_noises: Noises of the label counts, in counts.
        head: Ledger id, entry number and hash of the client's latest head; None without one.
    """

    spent: Spent
    rounds: int
    closing: bool
    num_units: int
    events: dict[str, tuple[Event, ...]]
    noises: frozenset[float]
    samplers: frozenset[int]
    label_noises: frozenset[float]
    head: tuple[str, int, str] | None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "ClientStatement":
        """Read the part of `privacy.json` about one client.

        Raises:
            PrivacyError: A field holds a value of the wrong kind.
        """
        _check(content, {"rounds": int, "closing": bool, "num_units": int, "events": dict})
        spent = Spent(_number(content, "epsilon"), _number(content, "epsilon_rdp"))
        events = {part: [from_json(event) for event in listed] for part, listed in content["events"].items()}
        trained = [event for event in events["training"] if isinstance(event, DpSgdEvent)]
        noises = frozenset(event.noise_multiplier for event in trained)
        samplers = frozenset(event.sampler for event in trained)
        label_noises = frozenset(event.noise_stddev for event in events["training"] if isinstance(event, CountsEvent))
        head = None
        if "ledger" in content:
            _check(content["ledger"], {"id": str, "seq": int, "head": str})
            head = (content["ledger"]["id"], content["ledger"]["seq"], content["ledger"]["head"])
        by_part = {part: merged(listed) for part, listed in events.items()}
        facts = spent, content["rounds"], content["closing"], content["num_units"]
        return cls(*facts, by_part, noises, samplers, label_noises, head)


@dataclass(frozen=True)
class PrivacyStatement:
    """Privacy statement of a run.

    Attributes:
        run: Name of the run.
        mechanism: Name of the privacy mechanism.
        delta: Delta of every epsilon.
        spent: Largest epsilon of any client, by both accountants.
        complete: Whether the run ended by itself, after its last round or by early stopping.
        whole_plan: Whether the whole plan is charged because the run stopped early.
        simulated: Whether the clients are a simulation's.
        clients: Part about each client, by name.
        joined_late: First round of each client that came late.
        text: Whole content of `privacy.json`.
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
    def of(cls, content: dict[str, Any]) -> "PrivacyStatement":
        """Read the content of `privacy.json` of a private run.

        Raises:
            PrivacyError: A field is missing or holds a value of the wrong kind.
        """
        missing = [name for name in FIELDS if name not in content]
        if missing:
            raise PrivacyError(f"it lacks {', '.join(missing)}")
        _check(content, dict.fromkeys(_TEXTS, str) | dict.fromkeys(_OBJECTS, dict) | {"absent": int})
        if any(type(first) is not int or first < 1 for first in content["joined_late"].values()):
            raise PrivacyError("joined_late is not of the kind that a run writes")
        for name, bundle in content["bundles"].items():
            if name not in content["clients"] or type(bundle) is not str or not _DIGEST.fullmatch(bundle):
                raise PrivacyError("bundles is not of the kind that a run writes")
        if content["charged"] not in CHARGED or content["status"] not in ("complete", "interrupted"):
            raise PrivacyError("it does not say what was charged, or whether the run is complete")
        if not content["clients"]:
            raise PrivacyError("it is about no client")
        return cls(
            run=content["run"],
            mechanism=content["mechanism"],
            delta=_number(content, "delta"),
            spent=Spent(_number(content, "epsilon_max"), _number(content, "epsilon_max_rdp")),
            complete=content["status"] == "complete",
            whole_plan=content["charged"] != CHARGED[0],
            simulated=content["ledger"].startswith("simulated"),
            clients={name: ClientStatement.of(client) for name, client in content["clients"].items()},
            joined_late=content["joined_late"],
            text=content,
        )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that holds every name once.

    Raises:
        ConfigError: The file cannot be read, or does not hold such an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): is this the folder of a run?") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a JSON file as a run writes it ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not a JSON file as a run writes it: it holds no named values")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal names a JSON reader keeps one. Another reader might keep the other.
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _check(content: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    # By exact type, since a bool is an int to isinstance.
    for name, kind in kinds.items():
        if type(content[name]) is not kind:
            raise PrivacyError(f"{name} is not of the kind that a run writes")


def _number(content: Mapping[str, Any], name: str) -> float:
    if type(content[name]) not in (int, float):
        raise PrivacyError(f"{name} is not a number")
    return float(content[name])
