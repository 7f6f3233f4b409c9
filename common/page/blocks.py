"""Values that a page is made of, plain and without any HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal

from common.system.console import format_epsilon, printable

_MAX_NAME, _MAX_SENTENCE, _MAX_POINTER = 60, 1000, 500
Grade = Literal["critical", "theoretical", "negligible", ""]


@dataclass(frozen=True)
class Cell:
    """Text of a figure or a name, with its origin.

    Attributes:
        text: What is shown.
        value: The figure as its file holds it; None for a text or a derived figure.
        source: File and JSON pointer of the figure; empty for a derived one.
        low: Lower end of its interval as a share; None without one.
        high: Upper end of its interval as a share; None without one.
        grade: Grade of a gap in the guarantee; empty for all else.
        is_name: Whether the text is a name that somebody else chose.
        title: Whole name where `text` is shortened; empty otherwise.
        strong: Whether nobody may overlook it.
        moment: Time that a live page counts from or to, ISO 8601; empty without one.
        way: How it counts. `ago` and `for` count from it, `until` to it.
    """

    text: str
    value: float | None = None
    source: str = ""
    low: float | None = None
    high: float | None = None
    grade: Grade = ""
    is_name: bool = False
    title: str = ""
    strong: bool = False
    moment: str = ""
    way: Literal["ago", "for", "until", ""] = ""


MISSING = Cell("-")


def name_cell(name: str) -> Cell:
    r"""Return the cell of a name, short and without invisible characters.

    >>> name_cell("cat\u202e").text
    'cat\\u202e'
    """
    text = printable(name, keep="")
    if len(text) <= _MAX_NAME:
        return Cell(text or "(no name)", is_name=True)
    # Both ends stay, because long paths often differ at their end.
    short = f"{text[: _MAX_NAME - 21]}…{text[-20:]}"
    return Cell(short, is_name=True, title=f"{text[:300]}… ({len(name):,} characters)" if len(text) > 300 else text)


def time_cell(moment: str, way: Literal["ago", "for", "until"] = "ago") -> Cell:
    """Return the cell of a time that a live page counts from or to.

    Without its script the page shows the time itself. A text that is not a time is shown as it is.

    >>> time_cell("2026-11-27T10:00:00.250+00:00").text
    'at 2026-11-27 10:00:00 UTC'
    """
    try:
        at = datetime.fromisoformat(moment).astimezone(UTC)
    except ValueError:
        return name_cell(moment) if moment else MISSING
    return Cell(f"at {at:%Y-%m-%d %H:%M:%S} UTC", moment=at.isoformat(timespec="milliseconds"), way=way)


def setting_cell(value: object) -> Cell:
    """Return the cell of a setting's value, None for a version without the setting."""
    if value is None:
        return Cell("(no such setting)")
    return name_cell(str(value)) if value != "" else Cell("(empty)")


def words(text: str) -> str:
    r"""Return a sentence from a file without invisible characters.

    >>> words("a\u202eb")
    'a\\u202eb'
    """
    shown = printable(text)
    return shown if len(shown) <= _MAX_SENTENCE else f"{shown[:_MAX_SENTENCE]}…"


def share_cell(value: float | None, source: str = "", low: float | None = None, high: float | None = None) -> Cell:
    """Return the cell of a figure between 0 and 1."""
    return MISSING if value is None else Cell(f"{value:.3f}", value, source, low, high)


def number_cell(value: float | None, source: str = "", decimals: int = 0) -> Cell:
    """Return the cell of a number with its thousands apart."""
    return MISSING if value is None else Cell(f"{value:,.{decimals}f}", value, source)


def epsilon_cell(value: float | None, source: str = "") -> Cell:
    """Return the cell of an epsilon, rounded up."""
    return MISSING if value is None else Cell(format_epsilon(value), value, source)


def pointer(file: str, *keys: str | int) -> str:
    """Return a file's name with a JSON pointer.

    It is empty if a name is very long. Invisible characters are escaped.

    >>> pointer("summary.json", "per_class", "a/b")
    'summary.json#/per_class/a~1b'
    """
    escaped = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in keys)
    # A name of 10 kB would make a page of megabytes.
    return f"{file}#{printable(escaped, keep='')}" if len(escaped) < _MAX_POINTER else ""


Part = str | Cell


@dataclass(frozen=True)
class Text:
    """Sentences with figures in them."""

    kind: ClassVar[str] = "text"
    parts: tuple[Part, ...]
    strong: bool = False
    small: bool = False


def text(*parts: Part, strong: bool = False, small: bool = False) -> Text:
    """Return sentences as a block."""
    return Text(parts, strong, small)


@dataclass(frozen=True)
class Tile:
    """Figure that a reader looks for first."""

    label: str
    cell: Cell
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Row of large figures."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Table:
    """Table with a heading for each column, numbers on the right where `numeric`."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...] = ()
    sortable: bool = False

    @property
    def is_prose(self) -> bool:
        """True if no column holds numbers."""
        return bool(self.numeric) and not any(self.numeric)

    def is_numeric(self, column: int) -> bool:
        """Return whether a column holds numbers, by default all but the first."""
        return self.numeric[column] if self.numeric else column > 0


@dataclass(frozen=True)
class Series:
    """Line of a chart with its error band.

    None stands where there is no value. Such a gap stays open, unless the line is `bridged`.
    """

    name: str
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    look: int = 1
    joined: bool = True
    bridged: bool = False


@dataclass(frozen=True)
class LineChart:
    """Chart of series over one axis, with its table behind it.

    Each row of the table belongs to one value of `x`.
    """

    kind: ClassVar[str] = "lines"
    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    series: tuple[Series, ...]
    table: Table
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class TimeLine:
    """Chart of marks in lanes, over rounds or shares, with its table behind it.

    Each row of the table belongs to one mark. `spans` are the ends of each mark's interval, none without intervals.
    """

    kind: ClassVar[str] = "timeline"
    title: str
    x_label: str
    lanes: tuple[str, ...]
    x: tuple[float, ...]
    lane_of: tuple[int, ...]
    limits: tuple[float, float]
    table: Table
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Matrix:
    """Table whose cells are shaded by the share of their row.

    `cells` are texts, `shares` in [0, 1], `sources` the origin of each cell or empty.
    """

    kind: ClassVar[str] = "matrix"
    title: str
    corner: str
    rows: tuple[Cell, ...]
    columns: tuple[Cell, ...]
    cells: tuple[tuple[Cell, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    diagonal: bool = False


@dataclass(frozen=True)
class PixelMap:
    """Picture of a large matrix with a table behind it."""

    kind: ClassVar[str] = "pixels"
    title: str
    row_label: str
    column_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Sequence[Sequence[int]]
    image: str
    table: Table


@dataclass(frozen=True)
class Details:
    """Blocks that open on demand."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Notice:
    """Marked box.

    `mark` is `simulation` or `warning`.
    """

    kind: ClassVar[str] = "notice"
    mark: Literal["simulation", "warning"]
    title: str
    blocks: tuple["Block", ...]


Block = Text | Tiles | Table | LineChart | TimeLine | Matrix | PixelMap | Details | Notice


@dataclass(frozen=True)
class Section:
    """Part of a page with a heading of its own."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """Whole page.

    Attributes:
        title: Title of the document.
        subtitle: Line below the title.
        sections: Parts in their order.
        footer: Line at the end.
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    footer: str
    names: tuple[Cell, ...] = field(default=())
