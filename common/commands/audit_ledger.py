"""`bract audit ledger`: what a privacy officer asks a ledger."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import LedgerError
from common.system.console import plain_errors

if TYPE_CHECKING:
    from common.ledger.audit.audit import Heads
    from common.ledger.audit.report import AuditedRun, LedgerReport
from common.system.console import format_epsilon, plain, say, show_remarks, show_verdict

audit_app = typer.Typer(no_args_is_help=True, help="Check what was spent, and attack what is promised.")
LEDGER_HELP = """Check ledgers: is anything changed or missing, and what was spent? No keys needed, nothing is written.

The verdict is "verified" only with heads that somebody else has kept (a server's heads.jsonl): an older copy, or an
owner who writes everything anew, shows in nothing else. Without them it is "internally consistent" at best.

Exit code: 0 nothing is wrong, 1 something is doubtful, 2 a file is no ledger.

Examples:

  bract audit ledger ~/.bract/holder/ledger.sqlite

  bract audit ledger runs/NAME/ledgers/*.sqlite --heads runs/NAME/heads.jsonl
"""
_MEANING = {
    "verified": "nothing is wrong, and it has all that the heads say it had",
    "internally consistent": "nothing is wrong in it; none of its heads were given, so an older copy would not show",
    "DOUBTFUL": "do not rely on its figures",
}
_NOT_PRIVATE = "took part with privacy.mechanism='none'"


@audit_app.command("ledger", help=LEDGER_HELP)
def audit_ledger_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Ledgers, SQLite files.")],
    heads: Annotated[
        Path | None, typer.Option(metavar="HEADS.jsonl", help="Heads that a server has kept of them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Check ledgers.

    Raises:
        LedgerError: A file is no ledger; the others are shown first. The user sees its text.
    """
    from common.ledger.audit.audit import kept_heads

    with plain_errors():
        kept = None if heads is None else kept_heads(heads)
        reports, failures = _audit_all(files, kept)
        if as_json:
            found = {"ledgers": [report.as_json() for report in reports], "failures": failures}
            typer.echo(json.dumps(found, indent=2))
        for report in () if as_json else reports:
            show_ledger(report, Console())
        if failures:
            raise LedgerError("\n".join(failures))
    if any(report.verdict == "DOUBTFUL" for report in reports):
        raise typer.Exit(1)


def _audit_all(files: Sequence[Path], heads: "Heads | None") -> "tuple[list[LedgerReport], list[str]]":
    """Reports, and what is wrong with files that are no ledgers."""
    from common.ledger.audit.audit import audit_ledger

    reports: list[LedgerReport] = []
    failures: list[str] = []
    for file in files:
        try:
            reports.append(audit_ledger(file, heads))
        except LedgerError as error:
            failures.append(str(error))
    return reports, failures


def show_ledger(report: "LedgerReport", console: Console) -> None:
    """Print what was found, verdict first; it can be read at 80 columns."""
    show_verdict(console, f"Ledger {report.file.name}", report.verdict, _MEANING[report.verdict])
    _show_extent(report, console)
    show_remarks(console, report.remarks.doubts, report.remarks.warnings)
    _show_worst(report, console)
    _show_runs(report, console)
    _show_datasets(report, console)
    for title, found in (("Notes", report.notes), ("Refusals (the reasons stayed here)", report.refusals)):
        if found:
            console.print(f"  [bold]{title}[/]")
        for said in found:
            mark = "NOT PRIVATE: " if said.text == _NOT_PRIVATE else ""
            say(
                console,
                f"{said.time[:16].replace('T', ' ')}  {said.run[:8]}  {said.client}  {mark}{said.text}",
                depth=4,
            )
    console.print()


def _show_extent(report: "LedgerReport", console: Console) -> None:
    kind = "of a simulation (its keys follow from its seed)" if report.simulated else "of a data holder"
    newest = f"; newest head: entry {report.newest_head}" if report.newest_head else ""
    say(console, f"{report.ledger or 'no id'}, {kind}; {report.entries} entries up to {report.last} UTC{newest}")


def _show_worst(report: "LedgerReport", console: Console) -> None:
    worst = report.worst
    if worst is None or not worst.images:
        return
    runs = "1 run" if worst.runs == 1 else f"{worst.runs} runs"
    say(
        console,
        f"The image that has spent most, of {worst.images}: epsilon <= {format_epsilon(worst.spent.pld)} (PLD), "
        f"{format_epsilon(worst.spent.rdp)} (RDP) at delta {worst.delta:g}, over {runs}; "
        "a plan that was begun counts in full",
    )


def _show_runs(report: "LedgerReport", console: Console) -> None:
    if not report.runs:
        return
    table = _table("run", "client", "images", "rounds", "closing", "epsilon", "planned", "delta")
    for run in report.runs:
        table.add_row(*map(plain, _cells(run)))
    console.print(table)


def _cells(run: "AuditedRun") -> Sequence[str]:
    return (
        run.run[:8],
        run.client,
        run.dataset[:12],
        f"{run.rounds}/{run.plan.num_rounds}" + (" closed" if run.closed else " open"),
        "-" if run.plan.counts is None else "yes" if run.closing else "no",
        format_epsilon(run.spent.pld),
        format_epsilon(run.planned.pld),
        f"{run.plan.delta:g}",
    )


def _show_datasets(report: "LedgerReport", console: Console) -> None:
    if not report.datasets:
        return
    table = _table("images", "unit", "training", "evaluation")
    for found in report.datasets:
        sizes = [
            _size(found.images.get(part, 0), found.units.get(part, 0), found.unit)
            for part in ("training", "evaluation")
        ]
        table.add_row(*map(plain, (found.dataset[:12], found.unit, *sizes)))
    console.print(table)


def _size(images: int, units: int, unit: str) -> str:
    return f"{images} images" if unit == "image" else f"{images} images in {units} groups"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    for column in columns:
        table.add_column(column, no_wrap=column != "client", overflow="fold")
    return table
