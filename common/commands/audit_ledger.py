"""The command `bract audit ledger`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import LedgerError
from common.system.console import (
    busy,
    format_alone,
    format_epsilon,
    plain,
    plain_errors,
    say,
    show_remarks,
    show_verdict,
)

if TYPE_CHECKING:
    from common.ledger.audit.audit import Heads
    from common.ledger.audit.report import AuditedRun, LedgerReport

audit_app = typer.Typer(no_args_is_help=True, help="Check what was spent, and attack what is promised.")
LEDGER_HELP = """Check ledgers: is anything changed or missing, and what was spent? Needs no keys and writes nothing.

The verdict is "verified" only with heads that another party has kept (a server's heads.jsonl). Nothing else shows an
older copy, or an owner who has rewritten the whole ledger. Without heads the best verdict is "internally consistent".

Exit code: 0 nothing is wrong, 1 something is doubtful, 2 a file is not a ledger.

Examples:

  bract audit ledger ~/.bract/holder/ledger.sqlite

  bract audit ledger runs/NAME/ledgers/*.sqlite --heads runs/NAME/heads.jsonl
"""
_MEANING = {
    "verified": "nothing is wrong, and no entry that the heads name is missing",
    "internally consistent": "nothing is wrong inside it; without heads an older copy would not show",
    "DOUBTFUL": "do not rely on its figures",
}
_NOT_PRIVATE = "took part with privacy.mechanism='none'"


@audit_app.command("ledger", help=LEDGER_HELP)
def audit_ledger_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Ledgers, SQLite files.")],
    heads: Annotated[
        Path | None, typer.Option(metavar="HEADS.jsonl", help="The ledgers' heads that a server has kept.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Check ledgers.

    Raises:
        LedgerError: A file is not a ledger. The reports of the others are shown first.
    """
    from common.ledger.audit.audit import kept_heads

    with plain_errors():
        kept = None if heads is None else kept_heads(heads)
        with busy("Checking every entry"):
            reports, failures = _audit_all(files, kept)
        if as_json:
            facts = {"ledgers": [report.as_json() for report in reports], "failures": failures}
            typer.echo(json.dumps(facts, indent=2))
        for report in () if as_json else reports:
            show_ledger(report, Console())
        if failures:
            raise LedgerError("\n".join(failures))
    if any(report.verdict == "DOUBTFUL" for report in reports):
        raise typer.Exit(1)


def _audit_all(files: Sequence[Path], heads: "Heads | None") -> "tuple[list[LedgerReport], list[str]]":
    """Return the reports of ledgers and the errors of other files."""
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
    """Print the report of a ledger, its verdict first."""
    show_verdict(console, f"Ledger {report.file.name}", report.verdict, _MEANING[report.verdict])
    _show_extent(report, console)
    show_remarks(console, report.remarks.doubts, report.remarks.warnings)
    _show_worst(report, console)
    _show_runs(report, console)
    _show_datasets(report, console)
    for title, notes in (("Notes", report.notes), ("Refusals (the reasons stayed here)", report.refusals)):
        if notes:
            console.print(f"  [bold]{title}[/]")
        for note in notes:
            mark = "NOT PRIVATE: " if note.text == _NOT_PRIVATE else ""
            time = note.time[:16].replace("T", " ")
            say(console, f"{time}  {note.run[:8]}  {note.client}  {mark}{note.text}", depth=4)
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
    if worst.alone != worst.spent:
        say(console, f"If all other clients of its secure sums collude: {format_alone(worst.alone.pld)} (PLD)")
    if report.noise:
        say(console, f"Noise of all runs: {report.noise}")


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
    for dataset in report.datasets:
        parts = [(dataset.images.get(part, 0), dataset.units.get(part, 0)) for part in ("training", "evaluation")]
        sizes = [_size(images, units, dataset.unit) for images, units in parts]
        table.add_row(*map(plain, (dataset.dataset[:12], dataset.unit, *sizes)))
    console.print(table)


def _size(images: int, units: int, unit: str) -> str:
    return f"{images} images" if unit == "image" else f"{images} images in {units} groups"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    for column in columns:
        table.add_column(column, no_wrap=column != "client", overflow="fold")
    return table
