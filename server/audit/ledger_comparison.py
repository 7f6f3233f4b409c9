"""What a run states of each client, held against that client's ledger."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common.ledger.audit.audit import Heads, audit_ledger
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import AuditedRun, LedgerReport
from common.privacy.accounting import Spent
from common.privacy.plan import PrivacyPlan
from common.system.progress import ProgressFactory
from server.audit.run_report import AuditedClient
from server.audit.statement_checks import is_same
from server.audit.statement_reader import PrivacyStatement

_SLACK = 1e-3  # relative: so much more may be stated than its ledger has


def audit_ledgers(
    folder: Path, statement: PrivacyStatement, heads: Heads, remarks: Remarks, progress: ProgressFactory
) -> dict[str, LedgerReport]:
    """Check the ledgers that lie in a run's folder; what is wrong with one is a doubt about the run.

    Args:
        folder: The run's folder.
        statement: What the run states.
        heads: What its server kept.
        remarks: Gets what does not fit.
        progress: Hears about each ledger.

    Returns:
        One report for each stated client whose ledger was seen.
    """
    files = {file.stem: file for file in sorted((folder / "ledgers").glob("*.sqlite"))}
    for name in statement.clients.keys() - files.keys() if statement.simulated else ():
        remarks.doubts.append(f"the ledger of client {name} is missing")
    advance = progress(len(files), "Ledgers")
    reports: dict[str, LedgerReport] = {}
    for name, file in files.items():
        with remarks.about(f"the ledger of client {name}"):
            report = audit_ledger(file, heads)
            remarks.doubts.extend(f"ledger of client {name}: {doubt}" for doubt in report.remarks.doubts)
            remarks.warnings.extend(f"ledger of client {name}: {warning}" for warning in report.remarks.warnings)
            for other in report.runs:
                if other.run == statement.run and other.rounds and other.client not in statement.clients:
                    remarks.doubts.append(
                        f"client {other.client} reserved rounds, and the statement is silent about it"
                    )
            if name in statement.clients:
                reports[name] = report
        advance(1)
    return reports


def compare_clients(
    statement: PrivacyStatement,
    costs: Mapping[str, Spent],
    plans: Mapping[str, PrivacyPlan],
    reports: Mapping[str, LedgerReport],
    silent: Mapping[str, int],
    remarks: Remarks,
) -> dict[str, AuditedClient]:
    """Hold what is stated of each client against its ledger.

    Args:
        statement: What the run states.
        costs: Client -> what its stated events cost.
        plans: Client -> the plan that the run's configuration gives.
        reports: Client -> its ledger, where it was seen.
        silent: Client -> rounds in which it failed; under the empty name, rounds in which somebody was not heard.
        remarks: Gets what does not fit.
    """
    found: dict[str, AuditedClient] = {}
    for name, client in statement.clients.items():
        found[name] = AuditedClient(client.spent, costs.get(name, client.spent), client.rounds, None, "")
        report = reports.get(name)
        if report is None:
            continue
        _check_ledger(name, statement, report, remarks)
        run = report.run_of(statement.run, name)
        if run is None:
            remarks.doubts.append(f"the ledger of client {name} has nothing about this run")
            continue
        if name in plans and run.plan != plans[name]:
            remarks.doubts.append(f"client {name} agreed to another plan than the statement has")
        spent = run.planned if statement.whole_plan else run.spent
        found[name] = replace(found[name], recomputed=spent, reserved=run.rounds, ledger=report.verdict)
        _check_charged(name, statement, run, silent.get(name, 0) + silent.get("", 0), remarks)
    return found


def _check_ledger(name: str, statement: PrivacyStatement, report: LedgerReport, remarks: Remarks) -> None:
    ident, seq, head = statement.clients[name].head or ("", 0, "")
    if report.ledger != ident or report.hashes.get(seq) != head:
        remarks.doubts.append(f"the ledger of client {name} is not the one that the statement names")
    if not report.heads:
        remarks.doubts.append(f"no head of the ledger of client {name} was kept")
    for note in report.notes:
        if note.run == statement.run and "exact" in note.text and statement.text["metrics"].get("release") != "exact":
            remarks.doubts.append(f"exact counts left client {name}, and the statement does not say so")
        if note.run == statement.run and "privacy.mechanism" in note.text:
            remarks.doubts.append(f"client {name} noted something else: {note.text}")


def _check_charged(name: str, statement: PrivacyStatement, run: AuditedRun, silent: int, remarks: Remarks) -> None:
    """Never less is stated than was reserved; more only where the whole plan is charged or the client failed."""
    client = statement.clients[name]
    unheard = (client.rounds - run.rounds, int(client.closing) - int(run.closing))
    explained = unheard[0] <= silent
    if min(unheard) < 0 or (unheard[0] and not explained and not statement.whole_plan):
        remarks.doubts.append(f"client {name} reserved {run.rounds} rounds, the statement charges {client.rounds}")
    elif any(unheard) and not statement.whole_plan:
        had = f"{run.rounds} of {client.rounds} rounds" if unheard[0] else "no closing counts"
        remarks.warnings.append(f"client {name} reserved {had}: it failed, and what is stated is more than was spent")
    recomputed = run.planned if statement.whole_plan else run.spent
    may_be_more = any(unheard) and explained and not statement.whole_plan
    for which in ("pld", "rdp"):
        said, found = getattr(client.spent, which), getattr(recomputed, which)
        less = not said >= found and not is_same(said, found)
        if less or not (may_be_more or said <= found * (1 + _SLACK)):
            remarks.doubts.append(
                f"client {name} states epsilon {said:.6g} ({which.upper()}), its ledger has {found:.6g}"
            )
