"""The server's commands: `bract server`, and `bract audit run` about runs that have ended."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.commands.audit_ledger import audit_app
from common.privacy.mechanisms import names_where
from common.system.console import bar_factory, figure, plain, plain_errors, say, show_remarks, show_verdict
from server.commands import operate as commands
from server.commands.run import RUN_HELP, run_command

if TYPE_CHECKING:
    from server.audit.run_report import RunReport

AUDIT_HELP = """Check a run's statement: does privacy.json follow from its clients' ledgers? Nothing is written.

Every epsilon is computed anew from the events. The verdict is "verified" where every client's ledger was seen and has
all that its signed heads say; a run of real clients has their heads only, and is "internally consistent" at best.

Exit code: 0 nothing is wrong, 1 something is doubtful, 2 it is no run's folder.

Example:

  bract audit run runs/NAME
"""
_MOST_CLIENTS = 20


def mount(app: typer.Typer) -> None:
    """Add this room's commands to those that others have mounted at the front door."""
    commands.mount(app)
    app.command("run", help=RUN_HELP)(run_command)
    audit_app.command("run", help=AUDIT_HELP)(audit_run_command)


def audit_run_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder, with privacy.json in it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Check a run's statement."""
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
    """Print what was found, verdict first; it can be read at 80 columns."""
    show_verdict(console, f"Run {report.folder.name}", report.verdict, _meaning(report))
    if report.statement:
        say(console, f"States: {report.statement}")
    if report.stated is not None:
        say(console, report.trust)
    show_remarks(console, report.remarks.doubts, report.remarks.warnings)
    if report.stated is None or not report.clients:
        return
    table = Table(box=None, padding=(0, 1))
    for column in ("client", "rounds", "reserved", "epsilon stated", "recomputed", "by RDP", "ledger"):
        table.add_column(column, overflow="fold")
    ordered = sorted(report.clients.items(), key=lambda item: -item[1].stated.pld)
    for name, client in ordered[:_MOST_CLIENTS]:
        cells: tuple[str | Text, ...] = (
            plain(name),
            str(client.rounds),
            "-" if client.reserved is None else str(client.reserved),
            figure(client.stated.pld),
            figure(client.recomputed.pld),
            figure(client.recomputed.rdp),
            client.ledger or "not seen",
        )
        table.add_row(*cells)
    console.print(table)
    if len(ordered) > _MOST_CLIENTS:
        say(console, f"and {len(ordered) - _MOST_CLIENTS} clients with no larger epsilon, see --json")


def _meaning(report: "RunReport") -> str:
    if report.verdict == "DOUBTFUL":
        return "do not rely on what it states"
    if report.verdict == "NOT PRIVATE":
        return "NOT PRIVATE: there is nothing to audit"
    if report.verdict == "verified":
        return f"what it states follows from {report.ledgers} ledgers, which have all that their heads say they had"
    if report.mechanism in names_where("noise_at_server"):
        return "what it states follows from its own events; clients keep no ledger of it"
    seen = "not all ledgers were seen" if report.ledgers else "ledgers were not seen"
    return f"what it states follows from its own events and signed heads; {seen}"
