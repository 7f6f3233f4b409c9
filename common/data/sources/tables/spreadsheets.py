"""Tables in the workbooks of spreadsheet programs."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.data.sources.tables.columns import MAX_TITLES, cell_text, find_header, num_needed
from common.data.sources.tables.text_tables import Sheet
from common.errors import DataError


def read_spreadsheet(file: Path) -> Sheet:
    """Read the first sheet of a workbook that has a manifest's columns.

    Without such a sheet the first one is returned. Formulas count with the value that the program saved.

    Raises:
        DataError: The package openpyxl is not installed, or the file is damaged.
        OSError: The file cannot be opened.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{file} needs the package openpyxl: pip install 'bract[xlsx]', or save the table as CSV"
        ) from None
    with file.open("rb") as stream:
        try:
            with warnings.catch_warnings():
                # It warns of colours and menus that it does not read.
                warnings.simplefilter("ignore")
                book = load_workbook(stream, read_only=True, data_only=True)
                sheets = {sheet.title: _sheet(sheet, file) for sheet in book.worksheets}
        # A damaged archive can make it raise anything.
        except Exception as error:
            raise DataError(
                f"{file} is not an .xlsx file that can be read ({type(error).__name__}); a password must be taken off "
                "first"
            ) from None
    filled = {title: sheet for title, sheet in sheets.items() if sheet.header}
    if not filled:
        return Sheet((), [], [])
    chosen = max(filled, key=lambda title: num_needed(filled[title].header, file))
    note = (f"{file.name} is read from its sheet {chosen}",) if len(filled) > 1 else ()
    return replace(filled[chosen], notes=note)


def _sheet(sheet: Any, file: Path) -> Sheet:
    """Return the table below the first row that names columns of a manifest."""
    lines = [
        (line, cells)
        for line, values in enumerate(sheet.iter_rows(values_only=True), start=1)
        if any(cells := [cell_text(value) for value in values])
    ]
    top = find_header([cells for _, cells in lines[:MAX_TITLES]], file)
    header = tuple(lines[top][1]) if lines else ()
    rows = [[*cells[: len(header)], *[""] * (len(header) - len(cells))] for _, cells in lines[top + 1 :]]
    return Sheet(header, rows, [line for line, _ in lines[top + 1 :]])
