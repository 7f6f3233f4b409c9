"""The checks of `bract client check` in their order.

Nothing is written into the ledger, nothing about images is sent, and a running client is not disturbed.
"""

from collections.abc import Iterator
from pathlib import Path

from client.checks.budget import check_budget, check_ledger
from client.checks.check_result import Finding, fail, ok
from client.checks.connection import check_key, check_server
from client.checks.inputs import check_data, check_disk, check_subgroups, check_values, check_weights
from client.checks.policy import check_pin, check_policy, check_roster_of
from client.client_config import SITE_FILE, load_site
from client.runtime.client_lock import is_running
from common.errors import ConfigError
from common.system.progress import ProgressFactory


def examine(folder: Path, progress: ProgressFactory) -> Iterator[Finding]:
    """Check a client and yield the findings one by one.

    A check whose input is missing, after a failure of another check, is left out.

    Args:
        folder: Folder that `bract client init` made.
        progress: Called with a total and a label.

    Raises:
        ConfigError: There is no client in the folder.
    """
    if not (folder / SITE_FILE).exists():
        raise ConfigError(f"there is no client in {folder}: name the folder that `bract client init` made")
    try:
        site = load_site(folder)
    except ConfigError as error:
        yield fail(
            "folder", str(error), "fix it, or set up a client in another folder: the ledger still knows all charges"
        )
        return
    yield ok("folder", f"{site.name}, {site.num_images} training images declared")
    yield ok("running", "yes" if is_running(site.lock_file) else "no")
    policy, finding = check_policy(site)
    yield finding
    if policy is not None:
        yield check_pin(site, policy)
        yield from check_roster_of(site, policy)
    key, finding = check_key(site)
    yield finding
    classes = () if policy is None else policy.classes
    yield check_data(site, progress, classes)
    yield from check_values(site, progress, classes)
    # "*" names no column.
    yield from check_subgroups(site, [] if policy is None else sorted({*policy.subgroup_columns} - {"*"}), classes)
    yield from check_weights(site)
    yield check_disk(site)
    report, finding = check_ledger()
    yield finding
    if policy is not None and report is not None and not report.remarks.doubts:
        yield check_budget(site.name, policy, report)
    yield from check_server(site, key)
