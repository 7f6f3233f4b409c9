"""What an audit of a ledger found."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.ledger.audit.costs import WorstImage
from common.ledger.audit.integrity_checks import Remarks
from common.privacy.accounting import Spent
from common.privacy.events import Event, as_json
from common.privacy.plan import PrivacyPlan

Verdict = Literal["verified", "internally consistent", "DOUBTFUL"]


@dataclass(frozen=True)
class AuditedRun:
    """One client in one run, as its ledger has it.

    Attributes:
        run: Name of the run.
        client: Name of the client.
        dataset: Names the images.
        plan: What was agreed on.
        rounds: Rounds that were reserved.
        closing: Whether the closing counts were reserved.
        sent: How many releases were committed, that is, may have left.
        closed: Whether nothing more can be reserved.
        events: Part of the data -> events of what was reserved.
        spent: What these cost at the plan's delta.
        planned: What the whole plan costs.
    """

    run: str
    client: str
    dataset: str
    plan: PrivacyPlan
    rounds: int
    closing: bool
    sent: int
    closed: bool
    events: dict[str, tuple[Event, ...]]
    spent: Spent
    planned: Spent


@dataclass(frozen=True)
class DataSet:
    """Images that a run was about.

    Attributes:
        dataset: Its name in the ledger.
        unit: What is charged: images, or groups of them.
        images: Part of the data -> number of different images.
        units: Part of the data -> number of units.
    """

    dataset: str
    unit: str
    images: dict[str, int]
    units: dict[str, int]


@dataclass(frozen=True)
class Said:
    """A note or a refusal; the reason of a refusal never left the client.

    Attributes:
        seq: Number of the entry.
        time: When, UTC.
        run: Name of the run.
        client: Name of the client.
        text: What was noted, or what was asked and why it was refused.
    """

    seq: int
    time: str
    run: str
    client: str
    text: str


@dataclass(frozen=True)
class LedgerReport:
    """What an audit of one ledger found.

    Attributes:
        file: The file.
        ledger: Id of the ledger, empty if its first entry is not to be believed.
        simulated: Whether the images are a simulation's.
        entries: How many there are.
        first: Time of the first, UTC.
        last: Time of the last.
        heads: How many of the heads that were given are this ledger's.
        newest_head: Number of the entry that the newest of them is about; 0 if there is none.
        remarks: Doubts and warnings.
        runs: Runs that were agreed to.
        datasets: The images they were about.
        refusals: What was refused.
        notes: What else was noted.
        worst: The image that has spent most; None if it cannot be said.
        hashes: Number of an entry -> its hash.
    """

    file: Path
    ledger: str
    simulated: bool
    entries: int
    first: str
    last: str
    heads: int = 0
    newest_head: int = 0
    remarks: Remarks = field(default_factory=Remarks)
    runs: tuple[AuditedRun, ...] = ()
    datasets: tuple[DataSet, ...] = ()
    refusals: tuple[Said, ...] = ()
    notes: tuple[Said, ...] = ()
    worst: WorstImage | None = None
    hashes: dict[int, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """`verified` only by heads that somebody else kept; without them an owner could have signed all anew."""
        if self.remarks.doubts:
            return "DOUBTFUL"
        return "verified" if self.heads else "internally consistent"

    def run_of(self, run: str, client: str) -> AuditedRun | None:
        """What the ledger has about one client in one run."""
        return next((one for one in self.runs if (one.run, one.client) == (run, client)), None)

    def as_json(self) -> dict[str, Any]:
        """Plain values; an epsilon without meaning is null."""
        return {
            "file": str(self.file),
            "verdict": self.verdict,
            "doubts": self.remarks.doubts,
            "warnings": self.remarks.warnings,
            "ledger": self.ledger,
            "simulated": self.simulated,
            "entries": self.entries,
            "first": self.first,
            "last": self.last,
            "heads": self.heads,
            "newest_head": self.newest_head,
            "worst_image": None if self.worst is None else asdict(self.worst) | {"spent": bounds(self.worst.spent)},
            "runs": [_run(run) for run in self.runs],
            "datasets": [asdict(found) for found in self.datasets],
            "refusals": [asdict(said) for said in self.refusals],
            "notes": [asdict(said) for said in self.notes],
        }


def _run(run: AuditedRun) -> dict[str, Any]:
    return vars(run) | {
        "plan": run.plan.as_json(),
        "events": {part: [as_json(event) for event in events] for part, events in run.events.items()},
        "spent": bounds(run.spent),
        "planned": bounds(run.planned),
    }


def bounds(spent: Spent) -> dict[str, float | None]:
    """Both bounds as plain values; null where so little noise was used that no figure means anything."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(spent).items()}
