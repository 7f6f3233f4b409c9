"""The report of a ledger's audit."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.ledger.audit.costs import WorstImage
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.registrations import events_json
from common.privacy.accounting import Spent
from common.privacy.events import Event
from common.privacy.plan import PrivacyPlan

_PLAIN_FIELDS = ("ledger", "simulated", "entries", "first", "last", "heads", "newest_head")
Verdict = Literal["verified", "internally consistent", "DOUBTFUL"]


@dataclass(frozen=True)
class AuditedRun:
    """A client's part in a run, as its ledger records it.

    Attributes:
        run: Name of the run.
        client: Name of the client.
        dataset: Keyed name of the images.
        plan: The plan that was agreed on.
        rounds: How many rounds were reserved.
        closing: Whether the closing counts were reserved.
        sent: How many releases were committed, so that they may have left.
        closed: Whether the run can reserve nothing more.
        events: Part of the data -> events of what was reserved.
        spent: What these events cost at the plan's delta.
        planned: What the whole plan costs at its delta.
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
    """The images of a registered run.

    Attributes:
        dataset: Keyed name of the images.
        unit: What is charged, `image` or `group`.
        images: Part of the data -> number of different images.
        units: Part of the data -> number of units.
    """

    dataset: str
    unit: str
    images: dict[str, int]
    units: dict[str, int]


@dataclass(frozen=True)
class LedgerNote:
    """A note or a refusal in a ledger.

    The reason of a refusal never left the client.

    Attributes:
        seq: Number of the entry.
        time: Time of the entry, UTC.
        run: Name of the run.
        client: Name of the client.
        text: The note, or what was asked and why it was refused.
    """

    seq: int
    time: str
    run: str
    client: str
    text: str


@dataclass(frozen=True)
class LedgerReport:
    """The results of one ledger's audit.

    Attributes:
        file: The audited file.
        ledger: Id of the ledger; empty if its first entry cannot be trusted.
        simulated: Whether the ledger belongs to a simulation.
        entries: How many entries it has.
        first: Time of the first entry, UTC.
        last: Time of the last entry, UTC.
        heads: How many of the given heads fit this ledger.
        newest_head: Number of the entry that the newest fitting head is about; 0 if there is no such head.
        remarks: Doubts and warnings.
        runs: The registered runs.
        datasets: The images of these runs.
        refusals: What was refused.
        notes: What else was noted.
        worst: The image that has spent the most; None if that cannot be computed.
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
    refusals: tuple[LedgerNote, ...] = ()
    notes: tuple[LedgerNote, ...] = ()
    worst: WorstImage | None = None
    hashes: dict[int, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The verdict, `verified` only if somebody else kept fitting heads."""
        if self.remarks.doubts:
            return "DOUBTFUL"
        # Without such heads the owner could have rewritten and signed the whole ledger.
        return "verified" if self.heads else "internally consistent"

    def run_of(self, run: str, client: str) -> AuditedRun | None:
        """Return a client's part in a run, None if the ledger lacks it."""
        return next((audited for audited in self.runs if (audited.run, audited.client) == (run, client)), None)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        An epsilon that means nothing becomes null.
        """
        return {
            "file": str(self.file),
            "verdict": self.verdict,
            "doubts": self.remarks.doubts,
            "warnings": self.remarks.warnings,
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "worst_image": None if self.worst is None else asdict(self.worst) | {"spent": bounds(self.worst.spent)},
            "runs": [_run(run) for run in self.runs],
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "notes": [asdict(note) for note in self.notes],
        }


def _run(run: AuditedRun) -> dict[str, Any]:
    return vars(run) | {
        "plan": run.plan.as_json(),
        "events": events_json(run.events),
        "spent": bounds(run.spent),
        "planned": bounds(run.planned),
    }


def bounds(spent: Spent) -> dict[str, float | None]:
    """Return both bounds as plain values, None for one that means nothing."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(spent).items()}
