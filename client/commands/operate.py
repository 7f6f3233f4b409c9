"""The commands `check`, `start`, `status`, `watch`, `review` and `leave` of `bract client`."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.system.console import new_bar, plain_errors
from common.system.paths import bract_home
from common.system.progress import ProgressFactory

if TYPE_CHECKING:
    from client.checks.check_result import Finding

CHECK_HELP = """Check everything that a round needs, before one begins.

Looks at the folder, the policy, the pinned code, the key, the images, the weights, the disk, the ledger and its budget,
the server, its certificate, the clocks, and whether the server knows this client. Each line tells a fact and, where it
is wrong, what to do. Nothing is written into the ledger, nothing about the images is sent, and a running client is not
disturbed.

Exit code: 0 no check fails, 1 a check fails, 2 there is no client.

Example: bract client check ward-7
"""
START_HELP = """Run the client until it is stopped. It answers the server, with pinned code only.

Example: bract client start ward-7
"""
STATUS_HELP = """Show the runs of this client, its spent and remaining budget, and its refusals.

Reads the ledger only; a running client is not disturbed.

Example: bract client status ward-7
"""
WATCH_HELP = """Show this client in the browser while it runs, for whoever answers for its images.

The page says what the client does now, what is left of the budget and how many images are near the cap, which runs it
took part in and what each has cost, what was refused and why, which code is pinned, and what may leave this client. It
is read-only: the ledger is never locked or written, and nothing of the page goes to the server. This machine alone can
open it, at the address that is printed. On a machine without a browser, forward the port: ssh -L PORT:127.0.0.1:PORT.
Ctrl-C ends the page, not the client.

Examples:

  bract client watch ward-7

  bract client watch ward-7 --port 8400
"""
REVIEW_HELP = """Show the differences between two bundles of code, before you pin one.

With DIR and a bundle: the Bract installed here against the bundle. With two bundles: the first against the second. With
DIR alone: the pinned code against the installed one. The server's operator makes a bundle with `bract server bundle`.
Files marked LOOK come first, then the lines as git shows them (git must be installed). The last line is the one to put
into policy.toml.

Exit code: 0 the same code, 1 different code, 2 no bundle or no git.

Examples:

  bract client review ward-7 bundle.fab

  bract client review old.fab new.fab --names
"""
LEAVE_HELP = """Leave all federations: remove this client's keys and what was derived from its images.

Removes the node's key, personal tensors, replies that were kept for sending again, and this user's caches of features,
pixels and scans (other clients of this user make theirs again). The images, client.toml, policy.toml and the ledger
stay. The ledger says what each image has spent: who deletes it can no longer show that, and would spend it again.

What the server has received cannot be taken back. Tell its operator to revoke the key: `bract server revoke NAME`.

Example: bract client leave ward-7
"""
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `bract client init` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")]
_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def check_command(folder: Folder, as_json: Json = False) -> None:
    """Check a client."""
    from client.checks.run_checks import examine

    findings: list[Finding] = []
    console = Console()
    with plain_errors(), _bars_that_go(Console(stderr=True)) as progress:
        for finding in examine(_absolute(folder), progress):
            findings.append(finding)
            if not as_json:
                _show_finding(finding, console)
    failed = sum(finding.state == "FAIL" for finding in findings)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show_sum(findings, failed, console)
    raise typer.Exit(1 if failed else 0)


@contextmanager
def _bars_that_go(console: Console) -> Iterator[ProgressFactory]:
    """Yield a factory of progress bars that disappear when their work is done."""
    with ExitStack() as stack:

        def start(total: int, what: str) -> Callable[[int], None]:
            if not total or not console.is_terminal:
                return lambda _: None
            bar = stack.enter_context(new_bar(console))
            task = bar.add_task(what, total=total)

            def advance(amount: int) -> None:
                bar.advance(task, amount)
                if bar.finished:
                    stack.pop_all().close()

            return advance

        yield start


def _show_finding(finding: "Finding", console: Console) -> None:
    from rich.table import Table

    from common.system.console import plain

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=4)
    table.add_column(width=9)
    table.add_column(overflow="fold")
    table.add_row(plain(finding.state, _COLOURS[finding.state]), plain(finding.check), plain(finding.found))
    if finding.remedy:
        table.add_row("", "", plain(f"-> {finding.remedy}"))
    console.print(table)


def _show_sum(findings: "Sequence[Finding]", failed: int, console: Console) -> None:
    warned = sum(finding.state == "warn" for finding in findings)
    text = f"{len(findings)} checks, nothing fails" + (f", {warned} to know about" if warned else "")
    if failed:
        text = f"{failed} of {len(findings)} checks fail: fix them from the top, then check again"
    console.print(text, highlight=False)


def start_command(folder: Folder) -> None:
    """Run a client until it is stopped."""
    from client.runtime.start import start_client

    with plain_errors():
        code = start_client(_absolute(folder), Console())
    raise typer.Exit(code)


def status_command(folder: Folder, as_json: Json = False) -> None:
    """Show where a client stands."""
    from client.status.status import client_status
    from client.status.view import show_status

    with plain_errors():
        status = client_status(_absolute(folder))
    if as_json:
        typer.echo(json.dumps(status.as_json(), indent=2))
    else:
        show_status(status, Console())


def watch_command(
    folder: Folder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the page; a free one if 0.")] = 0,
) -> None:
    """Show a client while it runs."""
    from client.status.watched_client import WatchedClient
    from common.live_page.serve import serve_page

    with plain_errors("The page is closed. The client is as it was."):
        serve_page(WatchedClient(_absolute(folder)), port=port)


def review_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a client, or a bundle.")],
    second: Annotated[Path | None, typer.Argument(metavar="B", help="A bundle.")] = None,
    names: Annotated[bool, typer.Option("--names", help="Names of files only, no lines.")] = False,
) -> None:
    """Compare bundles."""
    from client.bundle_review.compare import review
    from client.bundle_review.view import show_review

    with plain_errors():
        found = review(_absolute(first), None if second is None else _absolute(second))
        show_review(found, names_only=names)
    raise typer.Exit(0 if found.same else 1)


def leave_command(
    folder: Folder, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Leave all federations."""
    from client.client_config import load_site
    from client.setup.leave import leave_federations

    with plain_errors("Stopped: what is listed by `bract client leave --help` may be left."):
        site = load_site(_absolute(folder))
        if not yes:
            typer.confirm(
                f"Remove the keys of {site.name!r}, its personal tensors and kept replies, and all caches in "
                f"{bract_home() / 'cache'}?",
                abort=True,
            )
        removed = leave_federations(site)
    keys = ", ".join(file.name for file in removed.keys) or "no key, there was none"
    for line in (
        f"Removed  {keys}; personal tensors of {removed.runs} runs; {removed.replies} kept replies; "
        f"{removed.cached_bytes / 1e6:.1f} MB of caches",
        f"Kept     the images, {site.folder}/client.toml and policy.toml, and the ledger in {bract_home() / 'holder'}",
        f"Next     ask the server's operator to say: bract server revoke {shlex.quote(site.name)}",
    ):
        Console().print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()
