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

    `rounds` were reserved, `closing` says whether the closing counts were. `sent` releases were committed, so they may
    have left. `events` holds what was reserved by part of the data, `spent` its cost at the plan's delta, `planned`
    that of the whole plan. `alone` is that of the whole plan if all other clients of its secure sums colluded.
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
    alone: Spent


@dataclass(frozen=True)
class DataSet:
    """The images of a registered run.

    `images` and `units` count different images and units by part of the data.
    """

    dataset: str
    unit: str
    images: dict[str, int]
    units: dict[str, int]


@dataclass(frozen=True)
class LedgerNote:
    """A note or a refusal in a ledger.

    `text` is the note, or what was asked and why it was refused. The reason of a refusal never left the client.
    """

    seq: int
    time: str
    run: str
    client: str
    text: str


@dataclass(frozen=True)
class LedgerReport:
    """The results of one ledger's audit.

    The id `ledger` is empty if its first entry cannot be trusted. `entries` is a number, `first` and `last` are the
    times of these entries, UTC. `heads` is how many of the given heads fit, `newest_head` the entry that the newest of
    them is about, 0 without one. `worst` is None if it cannot be computed. `noise` says whether the error of all runs'
    noise together is bounded. `hashes` maps an entry's number to its hash.
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
    noise: str = ""
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
            "noise": self.noise,
            "worst_image": None if self.worst is None else _worst(self.worst),
            "runs": [_run(run) for run in self.runs],
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "notes": [asdict(note) for note in self.notes],
        }


def _run(run: AuditedRun) -> dict[str, Any]:
    values = vars(run) | {
        "plan": run.plan.as_json(),
        "events": events_json(run.events),
        "spent": bounds(run.spent),
        "planned": bounds(run.planned),
        "alone": bounds(run.alone),
    }
    return {name: value for name, value in values.items() if name != "alone" or run.plan.noise_shares}


def _worst(worst: WorstImage) -> dict[str, Any]:
    values = asdict(worst) | {"spent": bounds(worst.spent), "alone": bounds(worst.alone)}
    # Without noise in shares there is one figure.
    return {name: value for name, value in values.items() if name != "alone" or worst.alone != worst.spent}


def bounds(spent: Spent) -> dict[str, float | None]:
    """Return both bounds as plain values, None for one that means nothing."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(spent).items()}
