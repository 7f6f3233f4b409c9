"""Commands that look at runs that have been done."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.system.console import plain_errors, printable

REPORT_HELP = """Write report.html and rounds.csv into a run's folder, from its files alone.

A run writes both by itself at its end. This command makes them again, also for a run that was killed, is still
running, or was refused. The page loads nothing from a network.

Example:

  bract report runs/NAME
"""
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder, with config.toml in it.")]


def report_command(folder: Folder) -> None:
    """Write the report of a run."""
    from server.reporting.run_page.report import write_report

    with plain_errors():
        file = write_report(folder)
    line = (
        f"Report   {printable(str(file))}: open it in a browser; the table is {printable(str(file.parent))}/rounds.csv"
    )
    Console().print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
