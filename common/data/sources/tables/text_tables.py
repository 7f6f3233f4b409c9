"""Tables in text files, whose separator and encoding are found by looking."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.sources.tables.columns import MAX_TITLES, candidates, find_columns, find_header
from common.errors import DataError

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # The mark of UTF-32 begins with that of UTF-16, so it must be tried first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SHOWN = {"cp1252": "Windows-1252 text", "mac-roman": "Mac Roman text"}
_SAMPLE = 200  # rows by which a separator is chosen


@dataclass(frozen=True)
class Sheet:
    """Cells of a table as text, below a header.

    Attributes:
        header: Names of the columns; "" for a column without a name.
        rows: Cells of each row, as many as the header has.
        lines: Line in the file where each row begins.
        notes: What had to be decided to read the file.
    """

    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()


def read_text_table(file: Path) -> Sheet:
    """Read a CSV or TSV file as spreadsheets write it.

    The encoding is UTF-8, UTF-16, UTF-32 or, where the file is none of these, Windows-1252. The separator is the one
    under which the header has the columns of a manifest, or else under which most rows have as many fields.

    Raises:
        DataError: A row has more fields than the header, a quote stays open, or the text has another encoding.
        OSError: The file cannot be opened.
    """
    text, encoding = _decoded(file.read_bytes(), file)
    first, _, rest = text.partition("\n")
    # Excel takes the separator from such a first line.
    said = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    text, skipped = (rest, 1) if said else (text, 0)
    separator = said[1] if said else _separator(text, file)
    records = list(_records(text, separator, file, skipped))
    top = find_header([cells for _, cells in records[:MAX_TITLES]], file)
    header = tuple(records[top][1]) if records else ()
    filled = [record for record in records[top + 1 :] if any(record[1])]
    # R writes names of rows below a header that lacks a name for them.
    # A text with a separator may make a row longer too, so each first field must be the row's number.
    if filled and all(len(row) == len(header) + 1 and row[0] == str(at) for at, (_, row) in enumerate(filled, start=1)):
        header = ("", *header)
    rows = [_fitted(cells, header, file, line, separator) for line, cells in filled]
    notes = [] if encoding.startswith("utf-8") else [f"{file.name} is read as {_SHOWN.get(encoding, encoding)}"]
    notes += [] if separator == "," else [f"{file.name} is separated by {_SEPARATORS.get(separator, separator)}s"]
    notes += [f"{file.name} has its header in line {records[top][0]}"] if top else []
    return Sheet(header, rows, [line for line, _ in filled], tuple(notes))


def _decoded(content: bytes, file: Path) -> tuple[str, str]:
    """Return the text of a file and its encoding."""
    mark = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    for encoding in (mark,) if mark else _unmarked(content):
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise DataError(f"{file} is not a text in UTF-8, UTF-16 or Windows-1252: save it as CSV in UTF-8")


def _unmarked(content: bytes) -> Sequence[str]:
    head = content[:1000]
    # In UTF-16 every second byte of Latin text is zero.
    if head.count(0) * 3 > len(head):
        return ("utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be",)
    # Only programs of old Macintoshes end lines so.
    return ("utf-8", "mac-roman" if b"\r" in content and b"\n" not in content else "cp1252")


def _separator(text: str, file: Path) -> str:
    """Return the separator that makes the best table."""
    usual = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
    return max(_SEPARATORS, key=lambda separator: (*_fit(text, separator, file), separator == usual))


def _fit(text: str, separator: str, file: Path) -> tuple[int, int, float]:
    """Return how good a table a separator makes.

    These are the numbers of needed and of known columns, and the share of rows that are as wide as the header.
    """
    records: list[list[str]] = []
    try:
        for _, cells in _records(text, separator, file, 0):
            records.append(cells)
            if len(records) > _SAMPLE:
                break
        records = records[find_header(records[:MAX_TITLES], file) :]
        roles = set(find_columns(records[0], file)) if records else set()
    # Under a wrong separator quotes may stay open: that is a point against it, not yet a fault of the file.
    except DataError:
        # A header in doubt may still be the right one where only images are wanted.
        roles = {"path"} if records and len(candidates(records[0], "path")) == 1 else set()
    widths = [len(cells) for cells in records]
    alike = sum(width == widths[0] for width in widths) / len(widths) if widths and widths[0] > 1 else 0.0
    return len(roles & {"path", "label"}), len(roles), alike


def _records(text: str, separator: str, file: Path, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f'{file}, line {line}: a quote (") is not closed, or text follows it ({error})\n  correct this line'
            ) from None
        if cells is None:
            return
        if cells:
            yield line, [cell.strip() for cell in cells]


def _fitted(cells: list[str], header: Sequence[str], file: Path, line: int, separator: str) -> list[str]:
    """Return the cells of a row, as many as the header has."""
    # Spreadsheets write separators for empty columns, which hold nothing.
    if any(cells[len(header) :]):
        raise DataError(
            f"{file}, line {line}: {len(cells)} fields under {len(header)} columns\n  put a text that holds a "
            f"{_SEPARATORS.get(separator, separator)} in quotes"
        )
    return [*cells[: len(header)], *[""] * (len(header) - len(cells))]
