"""The runs and charges of a client for `bract client status`.

The ledger is opened read-only, so a running client is not disturbed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from client.client_config import Site, load_site
from client.runtime.client_lock import is_running
from common.errors import LedgerError
from common.ledger.audit.audit import audit_ledger
from common.ledger.audit.costs import cost_of
from common.ledger.audit.read_only import open_read_only
from common.ledger.audit.report import AuditedRun, LedgerNote, LedgerReport, bounds
from common.ledger.data_holder import LEDGER_FILE
from common.ledger.hash_chain import Entry
from common.ledger.registrations import released_events
from common.ledger.remaining_budget import Budget, budget_of
from common.privacy.accounting import Spent
from common.privacy.policy import Policy, load_policy
from common.system.app_bundle import bundle_digest, installed_bundle
from common.system.paths import bract_home


@dataclass(frozen=True)
class RunStatus:
    """A run that this client took part in.

    Attributes:
        audited: The run in an audit of the ledger.
        first: Time of its first entry, UTC.
        last: Time of its last entry, UTC.
        sent: Epsilons of the committed releases, which may have left.
        policy: Digest of the policy under which the run was agreed to.
        unsent: Kind and round of each release that is charged and not committed. It is being computed, or its process
            ended before anything left.
        committed: Kind and round of each committed release.
    """

    audited: AuditedRun
    first: str
    last: str
    sent: Spent
    policy: str
    unsent: tuple[tuple[str, int], ...]
    committed: tuple[tuple[str, int], ...]

    @property
    def state(self) -> str:
        """State of the run as one of `closed`, `finished` and `open`.

        A server closes a run at its end. A client that was away then never hears it, but once every release of the plan
        is charged there is nothing left to ask for, so the run is finished.
        """
        audited, plan = self.audited, self.audited.plan
        if audited.closed:
            return "closed"
        finished = audited.rounds >= plan.num_rounds and (audited.closing or plan.counts is None)
        return "finished" if finished else "open"


@dataclass(frozen=True)
class ClientStatus:
    """The state of a client.

    Attributes:
        site: The client.
        policy: Its policy.
        running: Whether it is running now.
        installed: Digest of the Bract installed here.
        report: An audit of the ledger.
        budget: The remaining budget under the policy; None where the ledger is doubtful.
        runs: This client's runs with noise, the newest last.
        notes: Notes in the ledger about this client, such as runs without noise.
        refusals: Requests that the client refused.
    """

    site: Site
    policy: Policy
    running: bool
    installed: str
    report: LedgerReport
    budget: Budget | None
    runs: tuple[RunStatus, ...]
    notes: tuple[LedgerNote, ...]
    refusals: tuple[LedgerNote, ...]

    @property
    def pin(self) -> str:
        """Pinned code as one of `installed`, `other` and `none`."""
        if not self.policy.bundle:
            return "none"
        return "installed" if self.policy.bundle == self.installed else "other"

    def as_json(self) -> dict[str, Any]:
        """Return the state as values for JSON."""
        budget = {} if self.budget is None else self.budget.as_json()
        by_unit = budget.pop("by_unit", None)
        return {
            "client": self.site.name,
            "running": self.running,
            "pin": self.pin,
            "pinned": self.policy.bundle,
            "installed": self.installed,
            "ledger": {"id": self.report.ledger, "verdict": self.report.verdict, "doubts": self.report.remarks.doubts},
            "max_epsilon": self.policy.max_epsilon,
            "delta": self.policy.delta,
            "accountant": self.policy.accountant,
            "budget": budget or None,
            "budget_by_unit": by_unit,
            "runs": [_plain(run) for run in self.runs],
            "notes": [asdict(note) for note in self.notes],
            "refusals": [asdict(refusal) for refusal in self.refusals],
        }


def _plain(run: RunStatus) -> dict[str, Any]:
    audited = run.audited
    return {
        "run": audited.run,
        "first": run.first,
        "last": run.last,
        "plan": audited.plan.as_json(),
        "rounds": audited.rounds,
        "closing": audited.closing,
        "closed": audited.closed,
        "state": run.state,
        "sent": bounds(run.sent),
        "charged": bounds(audited.spent),
        "planned": bounds(audited.planned),
        **({"alone": bounds(audited.alone)} if audited.plan.noise_shares else {}),
    }


def client_status(folder: Path) -> ClientStatus:
    """Return the state of a client.

    Args:
        folder: Folder that `bract client init` made.

    Raises:
        ConfigError: There is no client in the folder, or its policy cannot be used.
        LedgerError: There is no ledger, or it cannot be read.
    """
    site = load_site(folder)
    policy = load_policy(site.policy_file)
    file = bract_home() / "holder" / LEDGER_FILE
    if not file.is_file():
        raise LedgerError(f"there is no ledger at {file}: is BRACT_HOME what it was at `bract client init`?")
    report = audit_ledger(file)
    doubtful = bool(report.remarks.doubts)
    return ClientStatus(
        site=site,
        policy=policy,
        running=is_running(site.lock_file),
        installed=installed_digest(),
        report=report,
        budget=None if doubtful else budget_of(file, policy),
        runs=() if doubtful else _runs(report, site.name),
        notes=tuple(note for note in report.notes if note.client == site.name),
        refusals=tuple(refusal for refusal in report.refusals if refusal.client == site.name),
    )


def _runs(report: LedgerReport, client: str) -> tuple[RunStatus, ...]:
    with open_read_only(report.file) as ledger:
        entries = ledger.entries("json_extract(event, '$.client') = ?", (client,))
    return tuple(
        _run(audited, [entry for entry in entries if entry.event["run"] == audited.run])
        for audited in report.runs
        if audited.client == client
    )


def _run(audited: AuditedRun, entries: Sequence[Entry]) -> RunStatus:
    reserved, committed = _releases(entries, "reserve"), _releases(entries, "commit")
    sent = cost_of(released_events(audited.plan, committed), delta=audited.plan.delta)
    times = [entry.time[:16].replace("T", " ") for entry in entries]
    policy = next((str(entry.event["policy"]) for entry in entries if entry.kind == "register"), "")
    unsent = tuple(release for release in reserved if release not in committed)
    return RunStatus(audited, times[0], times[-1], sent, policy, unsent, committed)


def _releases(entries: Sequence[Entry], kind: str) -> tuple[tuple[str, int], ...]:
    return tuple((entry.event["release"], entry.event["round"]) for entry in entries if entry.kind == kind)


@cache
def installed_digest() -> str:
    """Return the digest of the Bract that this process runs."""
    return bundle_digest(installed_bundle())
