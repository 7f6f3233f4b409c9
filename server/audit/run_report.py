"""What an audit of a run found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import bounds
from common.privacy.accounting import Spent

Verdict = Literal["verified", "internally consistent", "DOUBTFUL", "NOT PRIVATE"]


@dataclass(frozen=True)
class AuditedClient:
    """One client of a run, as stated and as found.

    Attributes:
        stated: Both bounds that the run states.
        recomputed: What the ledger's events cost, or the stated ones where no ledger was seen.
        rounds: Rounds that are charged.
        reserved: Rounds that its ledger has; None where no ledger was seen.
        ledger: The verdict on its ledger; empty where none was seen.
    """

    stated: Spent
    recomputed: Spent
    rounds: int
    reserved: int | None
    ledger: str


@dataclass(frozen=True)
class RunReport:
    """What an audit of a run found.

    Attributes:
        folder: The run's folder.
        run: Name of the run.
        mechanism: Who adds the noise.
        statement: The run's own sentence.
        delta: What epsilon is for; 0 where nothing is private.
        stated: Both bounds of the client that is worst off; None where nothing is private.
        trust: Who must be believed for this to hold.
        ledgers: How many ledgers were seen.
        clients: By name.
        remarks: Doubts and warnings.
    """

    folder: Path
    run: str
    mechanism: str
    statement: str
    delta: float
    stated: Spent | None
    trust: str
    ledgers: int
    clients: dict[str, AuditedClient]
    remarks: Remarks

    @property
    def verdict(self) -> Verdict:
        """`verified` only where every client's ledger was seen and has what its heads say it had."""
        if self.remarks.doubts:
            return "DOUBTFUL"
        if self.stated is None:
            return "NOT PRIVATE"
        seen = bool(self.clients) and all(client.ledger == "verified" for client in self.clients.values())
        return "verified" if seen else "internally consistent"

    def as_json(self) -> dict[str, Any]:
        """Plain values; an epsilon without meaning is null."""
        return {
            "folder": str(self.folder),
            "verdict": self.verdict,
            "doubts": self.remarks.doubts,
            "warnings": self.remarks.warnings,
            "run": self.run,
            "mechanism": self.mechanism,
            "statement": self.statement,
            "delta": self.delta,
            "stated": None if self.stated is None else bounds(self.stated),
            "trust": self.trust,
            "ledgers_seen": self.ledgers,
            "clients": {
                name: vars(client) | {"stated": bounds(client.stated), "recomputed": bounds(client.recomputed)}
                for name, client in self.clients.items()
            },
        }
