"""Is the ledger whole and the newest, are its keys safe, and is any budget left? Nothing is written here."""

import json
import os
from pathlib import Path
from shlex import quote

from client.deployment.finding import Finding, fail, ok, warn
from client.deployment.spending import Budget, budget_of
from common.audit.audit_command import figure
from common.audit.ledger_audit import audit_ledger
from common.audit.ledger_report import LedgerReport
from common.config import bract_home
from common.errors import BractError, LedgerError
from common.ledger.holder import LEDGER_FILE
from common.ledger.keys import HolderKeys
from common.privacy.policy import Policy

_KEYS = ("fingerprint.key", "signing.key")
_NEARLY = 0.25


def check_ledger() -> tuple[LedgerReport | None, Finding]:
    """What an audit of this user's ledger found, None if it cannot be read; and whether it can be relied on."""
    holder = bract_home() / "holder"
    file = holder / LEDGER_FILE
    backup = f"restore {holder} and {bract_home() / 'heads'} from your newest backup, and start no client before"
    if not file.is_file():
        return None, fail(
            "ledger", f"there is no ledger at {file}", f"is BRACT_HOME what it was at init? If so, {backup}"
        )
    try:
        trouble = _trouble_with_keys(holder)
        report = _audited(file)
        if report.remarks.doubts:
            more = len(report.remarks.doubts) - 1
            trouble = (f"{report.remarks.doubts[0]}" + (f" (and {more} more)" if more else ""), backup)
        elif trouble is None and report.ledger != HolderKeys.of_folder(holder).ledger_id:
            trouble = (f"{file} was made with other keys than those beside it", backup)
        elif trouble is None and not _has_its_head(report):
            trouble = (f"{file} is an older copy: what was spent since is missing", backup)
    except BractError as error:
        return None, fail("ledger", str(error), f"if it is damaged, {backup}")
    if trouble is not None:
        return report, fail("ledger", *trouble)
    count = "1 entry" if report.entries == 1 else f"{report.entries} entries, each chained to the one before"
    return report, ok("ledger", f"{count}; id {report.ledger[:8]}")


def _audited(file: Path) -> LedgerReport:
    try:
        return audit_ledger(file)
    except LedgerError:  # it may be a running client that wrote meanwhile
        return audit_ledger(file)


def _trouble_with_keys(holder: Path) -> tuple[str, str] | None:
    """What is wrong and what to do; opening the keys would make those that are missing."""
    for file in (holder / name for name in _KEYS):
        if not file.is_file():
            return f"{file} is missing", "restore it from your backup: without it, what images have spent is not found"
        mode = file.stat().st_mode & 0o777
        if mode & 0o077 and os.name == "posix":
            return f"{file} can be read by others (mode {mode:04o})", f"chmod 600 {quote(str(file))}"
    return None


def _has_its_head(report: LedgerReport) -> bool:
    """Whether the ledger has the entry that it ended with when it was last used."""
    file = bract_home() / "heads" / f"{report.ledger}.json"
    if not file.is_file():
        return True
    try:
        kept = json.loads(file.read_text())
        return bool(report.hashes.get(int(kept["seq"])) == kept["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_budget(client: str, policy: Policy, report: LedgerReport) -> Finding:
    """What the policy leaves of the budget of the image that has spent most, over all clients of this user."""
    try:
        budget = budget_of(report.file, policy)
    except BractError as error:
        return fail("budget", f"what was spent cannot be told: {error}", "`bract audit ledger` says more")
    return _judge(budget, client, policy, report)


def _judge(budget: Budget, client: str, policy: Policy, report: LedgerReport) -> Finding:
    if not budget.images:
        return ok("budget", f"nothing spent yet of epsilon {policy.max_epsilon:g}")
    found = (
        f"the image that has spent most: epsilon {figure(budget.spent)} of {policy.max_epsilon:g} "
        f"({policy.accountant.upper()}, delta {policy.delta:g})"
    )
    if not budget.nothing_left:
        if budget.left < _NEARLY * policy.max_epsilon:
            return warn(
                "budget", f"{found}; about {budget.left:.2f} is left", "a further run must ask for less than that"
            )
        return ok("budget", found)
    unfinished = [run for run in report.runs if run.client == client and not run.closed and run.rounds]
    if unfinished:
        return warn(
            "budget",
            f"{found}: run {unfinished[-1].run[:8]}, which is not over, holds the rest",
            "it may go on; a further run on these images will be refused",
        )
    return fail(
        "budget",
        f"{found}: used up",
        "no further run on these images is possible. Raise max-epsilon only if whoever answers for the images agrees; "
        "images that are new have a budget of their own",
    )
