"""Result of the audit of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import bounds
from common.privacy.accounting import Spent

Verdict = Literal["verified", "internally consistent", "DOUBTFUL", "NOT PRIVATE"]


@dataclass(frozen=True)
class AuditedClient:
    """Audited figures of one client.

    Attributes:
        stated: Epsilon that the run states, by both accountants.
        recomputed: Epsilon of the events in its ledger, or of the stated events without a ledger.
        rounds: Number of rounds that the statement charges.
        reserved: Number of rounds in its ledger; None without a ledger.
        ledger: Verdict on its ledger; empty without a ledger.
    """

    stated: Spent
    recomputed: Spent
    rounds: int
    reserved: int | None
    ledger: str


@dataclass(frozen=True)
class RunReport:
    """Result of the audit of a run.

    Attributes:
        folder: Folder of the run.
        run: Name of the run.
        mechanism: Name of its privacy mechanism.
        statement: Sentence of its privacy statement.
        delta: Delta of every epsilon; 0 without a mechanism.
        stated: Largest stated epsilon of any client, by both accountants; None without a mechanism.
        trust: Sentence on who must be trusted for the guarantee.
        ledgers: Number of ledgers that were read.
        clients: Audited figures by client name.
        remarks: Doubts and warnings.
        noise: Sentence on the noise and its error; empty without a mechanism.
        charged: Whether clients of such a run charge it in ledgers of their own.
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
    noise: str = ""
    charged: bool = True

    @property
    def verdict(self) -> Verdict:
        """Verdict on the run, `verified` only if every client's ledger is verified."""
        if self.remarks.doubts:
            return "DOUBTFUL"
        if self.stated is None:
            return "NOT PRIVATE"
        all_verified = bool(self.clients) and all(client.ledger == "verified" for client in self.clients.values())
        return "verified" if all_verified else "internally consistent"

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values, with null for an infinite epsilon."""
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
            "noise": self.noise,
            "ledgers_seen": self.ledgers,
            "clients": {
                name: vars(client) | {"stated": bounds(client.stated), "recomputed": bounds(client.recomputed)}
                for name, client in self.clients.items()
            },
        }
