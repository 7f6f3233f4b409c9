"""What entries of a ledger say about a run: agreed plans, releases, and the charges that follow from them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.config.schema import Unit
from common.errors import LedgerError
from common.ledger import image_index as images
from common.ledger.budget import Charge
from common.ledger.database import Ledger
from common.ledger.hash_chain import Entry
from common.privacy.events import Event, as_json, merged
from common.privacy.plan import PrivacyPlan

_OF_RUN = "json_extract(event, '$.run') = ? AND json_extract(event, '$.client') = ? AND kind = ?"
Release = Literal["train", "closing"]
CLOSED = "closed"


@dataclass(frozen=True)
class Registration:
    """A run that a client has agreed to.

    Attributes:
        run: Name of the run.
        client: Name of the client in it.
        plan: What was agreed on.
        dataset: Names the images.
        seq: Number of the entry.
        policy: Names the policy that allowed it.
    """

    run: str
    client: str
    plan: PrivacyPlan
    dataset: str
    seq: int
    policy: str

    @classmethod
    def of(cls, entry: Entry) -> "Registration":
        """What a `register` entry says.

        Raises:
            PrivacyError: It holds no plan.
        """
        event = entry.event
        return cls(
            event["run"],
            event["client"],
            PrivacyPlan.from_json(event["plan"]),
            entry.dataset,
            entry.seq,
            event["policy"],
        )

    def request(self, server_round: int, release: Release) -> str:
        """The id of one release of this run: the same however often it is asked for.

        One ledger serves all clients of a holder, so the client's name is part of it.
        """
        return request_id(self.run, self.client, self.plan.digest, server_round, release)


def request_id(run: str, client: str, what: str, server_round: int, kind: str) -> str:
    """64 hex digits from all that makes a request the same one."""
    return hashlib.sha256("\x1f".join((run, client, what, str(server_round), kind)).encode()).hexdigest()


def place(run: str, client: str, server_round: int) -> dict[str, Any]:
    """What every event of a run begins with."""
    return {"run": run, "client": client, "round": server_round}


def register_event(
    ledger: Ledger, run: str, client: str, plan: PrivacyPlan, dataset: str, policy: str
) -> dict[str, Any]:
    """The event of a `register` entry: the plan, its events, the policy, and hashes of the images it is about.

    Call it inside the transaction that has added the images.
    """
    parts = {name: images.digest_of_part(ledger, dataset, name) for name in images.PARTS}
    added = images.digest_of_added(ledger, ledger.head().seq + 1)
    events = {part: [as_json(event) for event in found] for part, found in planned_events(plan).items()}
    return place(run, client, 0) | {
        "plan": plan.as_json(),
        "events": events,
        "policy": policy,
        "parts": parts,
        "added": added,
    }


def release_event(agreed: Registration, server_round: int, release: Release) -> dict[str, Any]:
    """The event of a `reserve` entry: what one release does to each part of the data."""
    plan = agreed.plan
    if release == "closing":
        done: Mapping[str, Sequence[Event]] = {"training": (), "evaluation": plan.counts_events(0)}
    else:
        done = {"training": (plan.event(1),), "evaluation": plan.counts_events(1, closing=False)}
    charges = {part: [as_json(event) for event in merged(events)] for part, events in done.items()}
    return place(agreed.run, agreed.client, server_round) | {"release": release, "charges": charges}


def planned_events(plan: PrivacyPlan) -> Mapping[str, Sequence[Event]]:
    """Part of the data -> what the whole plan does to a unit of it."""
    return {"training": (plan.event(),), "evaluation": plan.counts_events()}


def released_events(plan: PrivacyPlan, releases: Sequence[str]) -> Mapping[str, Sequence[Event]]:
    """Part of the data -> what the releases so far did to a unit of it."""
    rounds, closing = releases.count("train"), "closing" in releases
    return {"training": (plan.event(rounds),), "evaluation": plan.counts_events(rounds, closing=closing)}


def unit_of(plan: PrivacyPlan) -> Unit:
    """What is charged: images one by one, or groups of them."""
    return "group" if plan.privacy_unit == "group" else "image"


def charge_of(
    ledger: Ledger, dataset: str, plan: PrivacyPlan, releases: Sequence[str] = (), *, closed: bool = False
) -> Charge:
    """A plan over the images of a data set, as the budget sees it.

    Raises:
        LedgerError: The ledger lacks the data set.
    """
    known_as = images.aliases(ledger)
    parts: dict[str, images.Members] = {}
    for name in images.PARTS:
        members = images.read_part(ledger, dataset, name)[1]
        parts[name] = images.Members(images.follow_links(members.images, known_as), members.units)
    return Charge(unit_of(plan), parts, planned_events(plan), released_events(plan, releases), closed)


def charges_in(ledger: Ledger, *, without: tuple[str, str] | None = None) -> list[Charge]:
    """All runs that were begun: those with a reserved round. Needs no keys.

    Args:
        ledger: Open.
        without: Run and client that are left out.

    Raises:
        LedgerError: The ledger lacks the images of a run, has a charge that belongs to none, or cannot be read.
        PrivacyError: An entry holds no plan.
    """
    found, charged = [], 0
    for agreed in map(Registration.of, ledger.entries("kind = 'register'")):
        releases = releases_of(ledger, agreed)
        charged += len(releases)
        if releases and (agreed.run, agreed.client) != without:
            closed = is_closed(ledger, agreed)
            found.append(charge_of(ledger, agreed.dataset, agreed.plan, releases, closed=closed))
    if charged != ledger.query("SELECT count(*) FROM entry WHERE kind = 'reserve'")[0][0]:
        raise LedgerError(f"the ledger {ledger.path} has charges that belong to no agreement: nothing more is allowed")
    return found


def releases_of(ledger: Ledger, agreed: Registration) -> list[str]:
    """What was reserved in a run so far, in order."""
    return _values_of(ledger, "reserve", agreed, "$.release")


def is_closed(ledger: Ledger, agreed: Registration) -> bool:
    """Whether nothing more can be reserved in a run."""
    return CLOSED in _values_of(ledger, "note", agreed, "$.note")


def _values_of(ledger: Ledger, kind: str, agreed: Registration, path: str) -> list[str]:
    """One field of all entries of a kind about a run, in order, without reading the rest of them."""
    rows = ledger.query(
        f"SELECT json_extract(event, ?) FROM entry WHERE {_OF_RUN} ORDER BY seq",  # noqa: S608
        (path, agreed.run, agreed.client, kind),
    )
    return [value for (value,) in rows]


def entries_of(ledger: Ledger, kind: str, run: str, client: str) -> list[Entry]:
    """Entries of one kind about one client in one run, in order."""
    return ledger.entries(_OF_RUN, (run, client, kind))
