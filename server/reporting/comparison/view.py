"""Comparison of runs as a table in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from common.page.blocks import Cell, name_cell, setting_cell
from common.system.console import plain, say
from server.reporting.comparison.page import runs_table
from server.reporting.comparison.runs import ComparedRun, cautions, different_settings

_MAX_SETTINGS = 20


def show_comparison(runs: Sequence[ComparedRun], console: Console) -> None:
    """Print figures, settings that differ and what to mind."""
    found = runs_table(runs)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, column in enumerate(found.columns):
        table.add_column(
            column, justify="right" if found.is_numeric(place) else "left", overflow="fold", no_wrap=place > 1
        )
    for row in found.rows:
        table.add_row(*(plain(_shown(cell)) for cell in row))
    console.print(table)
    different = different_settings(runs)
    if different:
        settings = Table("setting", box=None, padding=(0, 1), pad_edge=False)
        for run in runs:
            settings.add_column(plain(name_cell(run.name).text), overflow="fold")
        for key, values in list(different.items())[:_MAX_SETTINGS]:
            settings.add_row(plain(name_cell(key).text), *(plain(setting_cell(value).text) for value in values))
        console.print(settings)
        if len(different) > _MAX_SETTINGS:
            say(console, f"and {len(different) - _MAX_SETTINGS} more settings, see --out", depth=0)
    for caution in cautions(runs):
        say(console, f"note: {caution}", "yellow", depth=0)


def _shown(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return cell.text
    # An end at 0 or 1 may be cut off, so the longer half is the standard deviation.
    return f"{cell.text} +-{max(cell.high - float(cell.text), float(cell.text) - cell.low):.3f}"
