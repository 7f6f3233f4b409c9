"""Registered plans, releases and charges of runs, as a ledger's entries hold them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from common.config.sections import Unit
from common.errors import LedgerError, PrivacyError
from common.ledger import image_index as images
from common.ledger.budget import Charge
from common.ledger.database import Ledger
from common.ledger.hash_chain import Entry
from common.privacy.events import DpSgdEvent, Event, as_json, from_json, merged
from common.privacy.plan import PrivacyPlan

_OF_RUN = "json_extract(event, '$.run') = ? AND json_extract(event, '$.client') = ? AND kind = ?"
# `labels` are the noised counts of training labels, which stay at the client and weigh its classes in every round.
Release = Literal["train", "closing", "labels"]
# Kind and round of each release that was charged or sent.
Releases = Sequence[tuple[str, int]]
CLOSED = "closed"


@dataclass(frozen=True)
class Registration:
    """A run that a client has agreed to.

    `dataset` is the keyed name of the images, `seq` the number of the `register` entry, `policy` the digest of the
    policy that allowed the run.
    """

    run: str
    client: str
    plan: PrivacyPlan
    dataset: str
    seq: int
    policy: str
    classes: str = ""

    @classmethod
    def of(cls, entry: Entry) -> "Registration":
        """Read a registration from its `register` entry.

        Raises:
            PrivacyError: The entry does not hold a privacy plan.
        """
        event = entry.event
        plan = replace(PrivacyPlan.from_json(event["plan"]), sampler=_sampler_of(event))
        classes = event.get("classes", "")
        return cls(event["run"], event["client"], plan, entry.dataset, entry.seq, event["policy"], classes)

    def request(self, server_round: int, release: Release) -> str:
        """Return the id of one release, equal each time the server asks for it.

        All clients of a holder share one ledger, so the client's name is part of the id.
        """
        return request_id(self.run, self.client, self.plan.digest, server_round, release)


def _sampler_of(event: Mapping[str, Any]) -> int:
    """Return the noise sampler of the training events of a `register` entry."""
    try:
        trained = map(from_json, event["events"]["training"])
        return min(int(each.sampler) for each in trained if isinstance(each, DpSgdEvent))
    except (KeyError, TypeError, ValueError):
        raise PrivacyError("a ledger holds an agreement without the events of its training") from None


def request_id(run: str, client: str, content: str, server_round: int, kind: str) -> str:
    """Return the id of a request, 64 hex digits."""
    return hashlib.sha256("\x1f".join((run, client, content, str(server_round), kind)).encode()).hexdigest()


def run_fields(run: str, client: str, server_round: int) -> dict[str, Any]:
    """Return the fields that each event of a run has."""
    return {"run": run, "client": client, "round": server_round}


def digest_of_classes(classes: Sequence[str]) -> str:
    """Return the digest of a class list, empty for an empty list."""
    return hashlib.sha256("\x1f".join(classes).encode()).hexdigest() if classes else ""


def register_event(
    ledger: Ledger, run: str, client: str, plan: PrivacyPlan, dataset: str, policy: str
) -> dict[str, Any]:
    """Return the event of a `register` entry.

    It holds the plan, the plan's events, the policy's digest, and hashes of the images. Call it inside the transaction
    that has added the images.
    """
    parts = {name: images.digest_of_part(ledger, dataset, name) for name in images.PARTS}
    # The entry that will hold this event gets the next number.
    added = images.digest_of_added(ledger, ledger.head().seq + 1)
    return run_fields(run, client, 0) | {
        "plan": plan.as_json(),
        "events": events_json(planned_events(plan)),
        "policy": policy,
        "parts": parts,
        "added": added,
    }


def release_event(agreed: Registration, server_round: int, release: Release) -> dict[str, Any]:
    """Return the event of a `reserve` entry with the charges of one release."""
    plan = agreed.plan
    done: Mapping[str, Sequence[Event]]
    if release == "closing":
        done = {"training": (), "evaluation": plan.counts_events(0)}
    elif release == "labels":
        done = {"training": plan.label_events(), "evaluation": ()}
    else:
        counted = plan.num_counted([server_round])
        done = {"training": (plan.event(1),), "evaluation": plan.counts_events(counted, closing=False)}
    charges = events_json({part: merged(events) for part, events in done.items()})
    return run_fields(agreed.run, agreed.client, server_round) | {"release": release, "charges": charges}


def events_json(parts: Mapping[str, Sequence[Event]]) -> dict[str, list[dict[str, Any]]]:
    """Return each part's events as plain JSON values."""
    return {part: [as_json(event) for event in events] for part, events in parts.items()}


def planned_events(plan: PrivacyPlan) -> Mapping[str, Sequence[Event]]:
    """Return for each part the whole plan's events on one unit."""
    return {"training": plan.training_events(), "evaluation": plan.counts_events()}


def released_events(plan: PrivacyPlan, releases: Releases) -> Mapping[str, Sequence[Event]]:
    """Return for each part the events of some releases on one unit."""
    rounds = [number for release, number in releases if release == "train"]
    counts = plan.counts_events(plan.num_counted(rounds), closing=any(release == "closing" for release, _ in releases))
    labels = plan.label_events() if any(release == "labels" for release, _ in releases) else ()
    return {"training": (plan.event(len(rounds)), *labels), "evaluation": counts}


def unit_of(plan: PrivacyPlan) -> Unit:
    """Return the unit that a ledger charges under a plan.

    A whole client is a group of all its images.
    """
    return "image" if plan.privacy_unit == "image" else "group"


def splits_client(plan: PrivacyPlan, units: np.ndarray) -> bool:
    """Return whether a plan for whole clients has a part with several units."""
    return plan.privacy_unit == "client" and len(np.unique(units)) > 1


def charge_of(
    ledger: Ledger, dataset: str, plan: PrivacyPlan, releases: Releases = (), *, closed: bool = False
) -> Charge:
    """Return the charge of a plan on the images of a data set.

    Raises:
        LedgerError: The ledger lacks the data set.
    """
    known_as = images.aliases(ledger)
    parts: dict[str, images.Members] = {}
    for name in images.PARTS:
        members = images.read_part(ledger, dataset, name)[1]
        parts[name] = images.Members(images.follow_links(members.images, known_as), members.units)
    whole_client = plan.privacy_unit == "client"
    return Charge(unit_of(plan), parts, planned_events(plan), released_events(plan, releases), closed, whole_client)


def charges_in(ledger: Ledger, *, without: tuple[str, str] | None = None) -> list[Charge]:
    """Return the charges of all runs that have reserved a round.

    No keys are needed. `without` is a run and client to leave out.

    Raises:
        LedgerError: The ledger lacks the images of a run, has a charge without a registration, or cannot be read.
        PrivacyError: An entry does not hold a privacy plan.
    """
    charges, counted = [], 0
    for agreed in map(Registration.of, ledger.entries("kind = 'register'")):
        releases = releases_of(ledger, agreed)
        counted += len(releases)
        if releases and (agreed.run, agreed.client) != without:
            closed = is_closed(ledger, agreed)
            charges.append(charge_of(ledger, agreed.dataset, agreed.plan, releases, closed=closed))
    # A charge that no registration explains cannot be priced, so nothing more may be spent.
    if counted != ledger.query("SELECT count(*) FROM entry WHERE kind = 'reserve'")[0][0]:
        raise LedgerError(f"the ledger {ledger.path} has charges that belong to no agreement: nothing more is allowed")
    return charges


def releases_of(ledger: Ledger, agreed: Registration) -> list[tuple[str, int]]:
    """Return kind and round of the releases that a run has reserved, in order."""
    return [(kind, number) for kind, number in _values_of(ledger, "reserve", agreed, "$.release", "$.round")]


def is_closed(ledger: Ledger, agreed: Registration) -> bool:
    """Return whether a run can reserve nothing more."""
    return (CLOSED,) in _values_of(ledger, "note", agreed, "$.note")


def _values_of(ledger: Ledger, kind: str, agreed: Registration, *paths: str) -> list[tuple[Any, ...]]:
    """Return some fields of a run's entries of one kind, in order."""
    fields = ", ".join(["json_extract(event, ?)"] * len(paths))
    return ledger.query(
        f"SELECT {fields} FROM entry WHERE {_OF_RUN} ORDER BY seq",  # noqa: S608
        (*paths, agreed.run, agreed.client, kind),
    )


def entries_of(ledger: Ledger, kind: str, run: str, client: str) -> list[Entry]:
    """Return the entries of one kind about a client in a run, in order."""
    return ledger.entries(_OF_RUN, (run, client, kind))
