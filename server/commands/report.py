"""Commands that look at runs that have been done."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.errors import ConfigError
from common.system.console import plain_errors, printable
from common.system.files import write_atomic

REPORT_HELP = """Write report.html and rounds.csv into a run's folder, from its files alone.

A run writes both by itself at its end. This command makes them again, also for a run that was killed, is still
running, or was refused. The page loads nothing from a network.

Example:

  bract report runs/NAME
"""
COMPARE_HELP = """Show runs side by side: figures, settings that differ, and with --out curves over each other.

Example:

  bract compare runs/A runs/B --out comparison.html
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


def compare_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="Folders of two to eight runs.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML page to write, with curves.")] = None,
) -> None:
    """Compare runs.

    Raises:
        ConfigError: A folder does not hold a run, or the page cannot be written; it is printed without a traceback.
    """
    from common.page.render import render
    from server.reporting.comparison.page import comparison_page
    from server.reporting.comparison.runs import read_runs
    from server.reporting.comparison.view import show_comparison

    console = Console()
    with plain_errors():
        if out is not None:
            _check_page(out)
        runs = read_runs(folders)
        if out is not None:
            try:
                write_atomic(out, render(comparison_page(runs)), durable=False, mode=0o666)
            except OSError as error:
                raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
        show_comparison(runs, console)
    shown = "--out FILE draws curves over each other" if out is None else f"Page     {printable(str(out))}"
    console.print(shown, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _check_page(out: Path) -> None:
    """Refuse a page that would take the place of something else.

    Raises:
        ConfigError: It is not called `.html`, or is in the folder of a run.
    """
    if out.suffix.lower() != ".html":
        raise ConfigError(f"--out {out}: the page is HTML, so give a file that ends in .html")
    if (out.resolve().parent / "config.toml").is_file():
        raise ConfigError(f"--out {out} is in the folder of a run, which keeps its own files alone: write elsewhere")
