"""Commands of the server's room, mounted at the front door."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.commands.audit_ledger import audit_app
from common.privacy.mechanisms.registry import names_where
from common.system.console import bar_factory, format_epsilon, plain, plain_errors, say, show_remarks, show_verdict
from server.commands import operate as commands
from server.commands.report import COMPARE_HELP, REPORT_HELP, compare_command, report_command
from server.commands.run import RUN_HELP, run_command
from server.commands.watch import WATCH_HELP, watch_command

if TYPE_CHECKING:
    from server.audit.run_report import RunReport

AUDIT_HELP = """Check that a run's privacy.json follows from its clients' ledgers. Nothing is written.

Every epsilon is computed again from the events. The verdict is "verified" if every client's ledger was read and
holds all that its signed heads state. A run of real clients has only the heads, and is "internally consistent" at best.

Exit code: 0 nothing is wrong, 1 something is doubtful, 2 the folder does not hold a run.

Example:

  bract audit run runs/NAME
"""
_MAX_CLIENTS = 20


def mount(app: typer.Typer) -> None:
    """Add this room's commands, after `common` has mounted the group `bract audit`."""
    commands.mount(app)
    app.command("run", help=RUN_HELP)(run_command)
    app.command("compare", help=COMPARE_HELP)(compare_command)
    app.command("report", help=REPORT_HELP)(report_command)
    app.command("watch", help=WATCH_HELP)(watch_command)
    audit_app.command("run", help=AUDIT_HELP)(audit_run_command)


def audit_run_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder, with privacy.json in it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Check the privacy statement of a run."""
    from server.audit.audit import audit_run

    console = Console(stderr=True)
    with plain_errors():
        if as_json or not console.is_terminal:
            report = audit_run(folder)
        else:
            with bar_factory(console) as progress:
                report = audit_run(folder, progress)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        show_run(report, Console())
    if report.verdict == "DOUBTFUL":
        raise typer.Exit(1)


def show_run(report: "RunReport", console: Console) -> None:
    """Print the report of an audit at 80 columns, verdict first."""
    show_verdict(console, f"Run {report.folder.name}", report.verdict, _meaning(report))
    if report.statement:
        say(console, f"States: {report.statement}")
    if report.stated is not None:
        say(console, report.trust)
    if report.noise:
        say(console, f"Noise: {report.noise}")
    show_remarks(console, report.remarks.doubts, report.remarks.warnings)
    if report.stated is None or not report.clients:
        return
    table = Table(box=None, padding=(0, 1))
    for column in ("client", "rounds", "reserved", "epsilon stated", "recomputed", "by RDP", "ledger"):
        table.add_column(column, overflow="fold")
    ordered = sorted(report.clients.items(), key=lambda item: -item[1].stated.pld)
    for name, client in ordered[:_MAX_CLIENTS]:
        cells: tuple[str | Text, ...] = (
            plain(name),
            str(client.rounds),
            "-" if client.reserved is None else str(client.reserved),
            format_epsilon(client.stated.pld),
            format_epsilon(client.recomputed.pld),
            format_epsilon(client.recomputed.rdp),
            client.ledger or "not read",
        )
        table.add_row(*cells)
    console.print(table)
    if len(ordered) > _MAX_CLIENTS:
        say(console, f"and {len(ordered) - _MAX_CLIENTS} clients with no larger epsilon, see --json")


def _meaning(report: "RunReport") -> str:
    if report.verdict == "DOUBTFUL":
        return "do not rely on its statement"
    if report.verdict == "NOT PRIVATE":
        return "NOT PRIVATE: there is nothing to audit"
    if report.verdict == "verified":
        return f"its statement follows from {report.ledgers} ledgers, which hold all that their heads state"
    if report.mechanism in names_where("noise_at_server"):
        return "its statement follows from its own events; clients keep no ledger of such a run"
    ledgers = "not all ledgers were read" if report.ledgers else "no ledger was read"
    return f"its statement follows from its own events and signed heads; {ledgers}"
