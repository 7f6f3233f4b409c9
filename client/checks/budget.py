"""Checks of the ledger, its keys and the remaining budget.

Nothing is written into the ledger.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from client.checks.check_result import Finding, fail, ok, warn
from common.errors import BractError, LedgerError
from common.ledger.audit.audit import audit_ledger
from common.ledger.audit.report import LedgerReport
from common.ledger.data_holder import LEDGER_FILE
from common.ledger.holder_keys import HolderKeys
from common.ledger.remaining_budget import NEARLY_SPENT, Budget, budget_of
from common.privacy.policy import Policy
from common.system.console import format_epsilon
from common.system.paths import bract_home

_KEYS = ("fingerprint.key", "signing.key")


def check_ledger() -> tuple[LedgerReport | None, Finding]:
    """Check that this user's ledger is whole, newest and made with its keys.

    Returns:
        The audit's report, None where the ledger cannot be read, and the finding.
    """
    holder = bract_home() / "holder"
    file = holder / LEDGER_FILE
    backup = f"restore {holder} and {bract_home() / 'heads'} from your newest backup, and start no client before"
    if not file.is_file():
        return None, fail(
            "ledger", f"there is no ledger at {file}", f"is BRACT_HOME what it was at init? If so, {backup}"
        )
    try:
        heads = last_heads()
        report = _audited(file)
        trouble = ledger_trouble(report, heads)
    except BractError as error:
        return None, fail("ledger", str(error), f"if it is damaged, {backup}")
    if trouble is not None:
        return report, fail("ledger", trouble[0], trouble[1] or backup)
    count = "1 entry" if report.entries == 1 else f"{report.entries} entries, each chained to the one before"
    return report, ok("ledger", f"{count}; id {report.ledger[:8]}")


def ledger_trouble(report: LedgerReport, heads: Mapping[str, tuple[int, str] | None]) -> tuple[str, str] | None:
    """Return a fault of the ledger or its keys with its remedy.

    The result is None without a fault. The remedy is empty where a backup must be restored. `heads` are from
    `last_heads`, read before the report.

    Raises:
        LedgerError: The keys cannot be read.
    """
    holder = report.file.parent
    if report.remarks.doubts:
        more = len(report.remarks.doubts) - 1
        return f"{report.remarks.doubts[0]}" + (f" (and {more} more)" if more else ""), ""
    if (trouble := _trouble_with_keys(holder)) is not None:
        return trouble
    if report.ledger != HolderKeys.of_folder(holder).ledger_id:
        return f"{report.file} was made with other keys than those beside it", ""
    seq, digest = heads.get(report.ledger, (0, "")) or (-1, "")
    if seq and report.hashes.get(seq) != digest:
        return f"{report.file} is an older copy: later charges are missing in it", ""
    return None


def check_budget(client: str, policy: Policy, report: LedgerReport) -> Finding:
    """Check how much the policy leaves to the plan with the least left.

    Args:
        client: Name of the client.
        policy: The data holder's policy.
        report: An audit of the ledger, which all clients of this user share.
    """
    try:
        budget = budget_of(report.file, policy)
    except BractError as error:
        return fail("budget", f"the charges cannot be added up: {error}", "`bract audit ledger` says more")
    return _judge_budget(budget, client, policy, report)


def _audited(file: Path) -> LedgerReport:
    try:
        return audit_ledger(file)
    except LedgerError:
        # A running client may have written during the audit, so try once more.
        return audit_ledger(file)


def _trouble_with_keys(holder: Path) -> tuple[str, str] | None:
    """Return a fault of the holder's keys with its remedy."""
    # Looked at as plain files: opening the keys would make those that are missing.
    for file in (holder / name for name in _KEYS):
        if not file.is_file():
            return f"{file} is missing", "restore it from your backup: without it, the charges of images are not found"
        mode = file.stat().st_mode & 0o777
        if mode & 0o077 and os.name == "posix":
            return f"{file} can be read by others (mode {mode:04o})", f"chmod 600 {quote(str(file))}"
    return None


def last_heads() -> dict[str, tuple[int, str] | None]:
    """Return the last entry of each ledger's latest use, by ledger id.

    None stands for a file that cannot be read. Call this before the ledger is read: a running client may append
    between the two, and the ledger's snapshot would then look like an older copy.
    """
    heads: dict[str, tuple[int, str] | None] = {}
    for file in (bract_home() / "heads").glob("*.json"):
        try:
            head = json.loads(file.read_text())
            heads[file.stem] = int(head["seq"]), str(head["hash"])
        except (OSError, ValueError, KeyError, TypeError):
            heads[file.stem] = None
    return heads


def _judge_budget(budget: Budget, client: str, policy: Policy, report: LedgerReport) -> Finding:
    # A whole client without images is charged too.
    if not budget.by_unit:
        return ok("budget", f"nothing spent yet of epsilon {policy.max_epsilon:g}")
    spent = (
        f"{budget.whose}: epsilon {format_epsilon(budget.spent)} of {policy.max_epsilon:g} "
        f"({policy.accountant.upper()}, delta {policy.delta:g})"
        + "".join(f"; {row.whose}: {format_epsilon(row.spent)}" for row in budget.others)
    )
    if not budget.nothing_left:
        if budget.left < NEARLY_SPENT * policy.max_epsilon:
            return warn(
                "budget", f"{spent}; about {budget.left:.2f} is left", "a further run must ask for less than that"
            )
        return ok("budget", spent)
    unfinished = [run for run in report.runs if run.client == client and not run.closed and run.rounds]
    if unfinished:
        return warn(
            "budget",
            f"{spent}: run {unfinished[-1].run[:8]}, which is not over, holds the rest",
            "this run can continue; a further run on these images will be refused",
        )
    some_left = any(not row.nothing_left(policy.max_epsilon) for row in budget.others)
    refused = (
        "a further run with such a plan will be refused" if some_left else "no further run on these images is possible"
    )
    return fail(
        "budget",
        f"{spent}: used up",
        f"{refused}. Raise max-epsilon only if whoever answers for the images agrees; "
        "new images have a budget of their own",
    )
