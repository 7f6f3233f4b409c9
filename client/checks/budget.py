"""Is the ledger whole and the newest, are its keys safe, and is any budget left? Nothing is written here."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from client.checks.check_result import Finding, fail, ok, warn
from client.client_config import Site
from common.errors import BractError, ConfigError, LedgerError
from common.ledger.audit.audit import audit_ledger
from common.ledger.audit.report import LedgerReport
from common.ledger.data_holder import LEDGER_FILE
from common.ledger.holder_keys import HolderKeys
from common.ledger.remaining_budget import Budget, budget_of
from common.privacy.mechanisms import mechanism_named
from common.privacy.policy import Policy, load_policy
from common.system.console import figure
from common.system.paths import bract_home

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
    return _judge_budget(budget, client, policy, report)


def _judge_budget(budget: Budget, client: str, policy: Policy, report: LedgerReport) -> Finding:
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


_SOON_DAYS = 14


def check_policy(site: Site) -> tuple[Policy | None, Finding]:
    """The policy, None if it cannot be read; and whether anything is allowed under it."""
    try:
        policy = load_policy(site.policy_file)
    except ConfigError as error:
        return None, fail(
            "policy",
            str(error),
            "mend the line that is named; nothing is answered until then. `bract client init` in an empty folder "
            "writes a policy to compare with",
        )
    return policy, _judge_policy(policy, site)


def _judge_policy(policy: Policy, site: Site) -> Finding:
    today, file = datetime.now(UTC).date(), site.policy_file
    if policy.expires is not None and today > policy.expires:
        return fail(
            "policy", f"it ended on {policy.expires}", f"set a later day as expires in {file}, or stop the client"
        )
    empty = [name for name in ("mechanisms", "tunings", "metrics", "units") if not getattr(policy, name)]
    if empty:
        return fail("policy", f"nothing is allowed: {', '.join(empty)} is empty", f"list what may be done in {file}")
    found = f"at most epsilon {policy.max_epsilon:g} at delta {policy.delta:g}, {', '.join(policy.mechanisms)}" + (
        f", until {policy.expires}" if policy.expires else ""
    )
    trusting = [text for name in policy.mechanisms if (text := mechanism_named(name).trust_warning)]
    if not math.isfinite(policy.max_epsilon):
        trusting.append("max-epsilon sets no limit")
    if trusting:
        return warn("policy", f"{found}; {'; '.join(trusting)}", f"if you do not mean it, take it out of {file}")
    if policy.expires is not None and (policy.expires - today).days <= _SOON_DAYS:
        return warn("policy", found, f"it ends soon: set a later day as expires in {file} if the client is to go on")
    return ok("policy", found)


def check_pin(site: Site, policy: Policy) -> Finding:
    """Whether the code that may run here is named, and is the one that is installed."""
    review = f"`bract client review {quote(str(site.folder))}`"
    try:
        installed = installed_digest()
    except BractError as error:
        return fail("pin", f"the installed Bract cannot be named: {error}", "reinstall bract")
    if not policy.bundle:
        promises_noise = any(mechanism_named(name).noise_at_client for name in policy.mechanisms)
        return (fail if promises_noise else warn)(  # a start is refused where noise is promised
            "pin",
            "no code is pinned: whatever a server sends would be trusted with the images",
            f'put bundle = "{installed}", the Bract installed here, into {site.policy_file}; {review} says more',
        )
    if policy.bundle != installed:
        return warn(
            "pin",
            f"{policy.bundle[:16]} is pinned, the Bract installed here is {installed[:16]}: only a server that sends "
            "the pinned one is answered",
            f"if Bract was updated on purpose, {review} ends with the line for {site.policy_file}",
        )
    return ok("pin", f"{policy.bundle[:16]}, the Bract installed here: no other code runs")


def installed_digest() -> str:
    """Digest of the bundle that the installed Bract would be, 64 hex digits.

    Raises:
        BractError: The installation is not whole.
    """
    from common.system.app_bundle import bundle_digest, installed_bundle

    return bundle_digest(installed_bundle())
