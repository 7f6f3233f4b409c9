"""Comparison of a run's statement with the ledgers of its clients."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from common.ledger.audit.audit import Heads, audit_ledger
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import AuditedRun, LedgerReport
from common.privacy.accounting import Spent
from common.privacy.batched_gradients import NOTE
from common.privacy.plan import PrivacyPlan
from common.system.progress import ProgressFactory
from server.audit.run_report import AuditedClient
from server.audit.statement_checks import is_same
from server.audit.statement_reader import PrivacyStatement

# The statement may exceed the ledger by this relative amount.
_TOLERANCE = 1e-3


def audit_ledgers(
    folder: Path, statement: PrivacyStatement, heads: Heads, remarks: Remarks, progress: ProgressFactory
) -> dict[str, LedgerReport]:
    """Audit the ledgers in a run's folder.

    Args:
        folder: Folder of the run.
        statement: Privacy statement of the run.
        heads: Signed heads that the server kept.
        remarks: Gets the doubts and warnings about each ledger.
        progress: Gets one step per ledger.

    Returns:
        Report on each ledger of a client in the statement, by client name.
    """
    files = {file.stem: file for file in sorted((folder / "ledgers").glob("*.sqlite"))}
    # Real clients keep their ledgers. A simulation leaves them all in its folder.
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
                    remarks.doubts.append(f"client {other.client} reserved rounds, but the statement does not name it")
            if name in statement.clients:
                reports[name] = report
        advance(1)
    return reports


def compare_clients(
    statement: PrivacyStatement,
    costs: Mapping[str, Spent],
    plans: Mapping[str, PrivacyPlan],
    reports: Mapping[str, LedgerReport],
    missing_replies: Mapping[str, int],
    remarks: Remarks,
) -> dict[str, AuditedClient]:
    """Compare the statement about each client with its ledger.

    Args:
        statement: Privacy statement of the run.
        costs: Client name -> epsilon of its stated events.
        plans: Client name -> plan by the run's configuration.
        reports: Client name -> report on its ledger, for the ledgers that were read.
        missing_replies: Client name -> number of rounds in which it failed. The empty name counts the rounds in which
            a client that is not named did not reply.
        remarks: Gets the doubts and warnings.

    Returns:
        Audited figures by client name.
    """
    clients: dict[str, AuditedClient] = {}
    for name, client in statement.clients.items():
        clients[name] = AuditedClient(client.spent, costs.get(name, client.spent), client.rounds, None, "")
        report = reports.get(name)
        if report is None:
            continue
        _check_ledger(name, statement, report, remarks)
        run = report.run_of(statement.run, name)
        if run is None:
            remarks.doubts.append(f"the ledger of client {name} has nothing about this run")
            continue
        if name in plans and run.plan.digest != plans[name].digest:
            remarks.doubts.append(f"client {name} agreed to another plan than the statement has")
        # A plan's digest does not cover its sampler. A late client of a run that an earlier version began has a better
        # one than is stated for all.
        elif name in plans and run.plan.sampler < plans[name].sampler:
            remarks.doubts.append(f"client {name} charged a noise sampler whose error has no bound")
        spent = run.planned if statement.whole_plan else run.spent
        clients[name] = replace(clients[name], recomputed=spent, reserved=run.rounds, ledger=report.verdict)
        _check_charged(name, statement, run, missing_replies.get(name, 0) + missing_replies.get("", 0), remarks)
    return clients


def _check_ledger(name: str, statement: PrivacyStatement, report: LedgerReport, remarks: Remarks) -> None:
    ident, seq, head = statement.clients[name].head or ("", 0, "")
    if report.ledger != ident or report.hashes.get(seq) != head:
        remarks.doubts.append(f"the ledger of client {name} is not the one that the statement names")
    if not report.heads:
        remarks.doubts.append(f"no head of the ledger of client {name} was kept")
    for note in report.notes:
        if note.run == statement.run and "exact" in note.text and statement.text["metrics"].get("release") != "exact":
            remarks.doubts.append(f"exact counts left client {name}, and the statement does not say so")
        if note.run == statement.run and note.text == NOTE and "gradients" not in statement.text:
            remarks.doubts.append(f"client {name} computed gradients in batches, and the statement does not say so")
        if note.run == statement.run and "privacy.mechanism" in note.text:
            remarks.doubts.append(f"client {name} noted something else: {note.text}")


def _check_charged(name: str, statement: PrivacyStatement, run: AuditedRun, missing: int, remarks: Remarks) -> None:
    """Compare a client's stated rounds and epsilon with its ledger.

    The statement must never charge less than the ledger. It may charge more only for the whole plan, or for rounds
    in which the client failed.
    """
    client = statement.clients[name]
    # The ledger lacks these rounds, and perhaps the closing counts. Exact ones are reserved there and cost nothing.
    closing = run.closing and run.plan.counts is not None
    lacking = (client.rounds - run.rounds, int(client.closing) - int(closing))
    explained = lacking[0] <= missing
    if min(lacking) < 0 or (lacking[0] and not explained and not statement.whole_plan):
        remarks.doubts.append(f"client {name} reserved {run.rounds} rounds, the statement charges {client.rounds}")
    elif any(lacking) and not statement.whole_plan:
        reserved = f"{run.rounds} of {client.rounds} rounds" if lacking[0] else "no closing counts"
        remarks.warnings.append(f"client {name} reserved {reserved}: it failed, so less was spent than is stated")
    recomputed = run.planned if statement.whole_plan else run.spent
    may_exceed = any(lacking) and explained and not statement.whole_plan
    for accountant in ("pld", "rdp"):
        stated, spent = getattr(client.spent, accountant), getattr(recomputed, accountant)
        # Written so that an epsilon of NaN counts as too small.
        too_small = not stated >= spent and not is_same(stated, spent)
        if too_small or not (may_exceed or stated <= spent * (1 + _TOLERANCE)):
            remarks.doubts.append(
                f"client {name} states epsilon {stated:.6g} ({accountant.upper()}), its ledger has {spent:.6g}"
            )
