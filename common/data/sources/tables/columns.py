"""Columns of a table by their role, recognised by the usual header names."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from common.data.image_formats import IMAGE_SUFFIXES
from common.data.sources.labels import MISSING
from common.errors import DataError

# Names in small letters, without spaces and marks. The first group that a header has wins.
_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path",),
        ("imagepath",),
        ("imgpath",),
        ("filepath",),
        ("relativepath",),
        ("fullpath",),
        ("filename",),
        ("imagefilename",),
        ("imagefile",),
        ("fname",),
        ("file",),
        ("image",),
        ("img",),
        ("imagename",),
        ("imgname",),
        ("imageindex",),
        ("imageid",),
        ("imgid",),
        ("idcode",),
    ),
    "label": (
        ("label",),
        (
            *("labels", "class", "classname", "classlabel", "category", "diagnosis", "dx", "target"),
            *("finding", "findings", "findinglabel", "findinglabels"),
        ),
    ),
    "unit": (
        ("unit",),
        ("patientid", "patientno", "patientnumber", "subjectid", "participantid", "personid"),
        ("patient", "subject", "participant", "person"),
    ),
    "client": (
        ("client",),
        ("clientid", "siteid", "hospitalid", "centerid", "centreid", "institutionid"),
        ("site", "sitename", "hospital", "center", "centre", "institution", "clinic"),
    ),
    "split": (("split",), ("subset", "datasplit")),
}
ROLES = tuple(_NAMES)
# Key of a column that a reader was asked for by its own name.
FURTHER = "further"
_MEANINGS = {"path": "the files", "label": "the classes"}
TRAIN, TEST = frozenset({"", "train", "training"}), frozenset({"test", "testing"})
VALIDATION = frozenset({"val", "valid", "validation", "dev"})
# As `datasets` names the finer of two label columns.
_FIRST_LABELS = ("label", "labels", "fine_label")
# What a column holds that says of each row whether it is of a class; CheXpert writes -1 for uncertain.
_FLAGS = frozenset({"", "0", "1", "0.0", "1.0", "-1", "-1.0", "true", "false"})
MAX_TITLES = 10  # rows among which a header is looked for
_MAX_SHOWN = 12


@dataclass(frozen=True)
class Table:
    """Columns of a table by their role, with one text for each row.

    Attributes:
        columns: Role -> texts of all rows; "" where a row has none. Also `FURTHER`, if a reader was asked for it.
        used: Role -> name of its column, as the header writes it.
        unused: Names of the other columns.
        image: Name of the column that holds encoded images, "" where the table names files.
        classes: Class names that the file states itself, such as those of a ClassLabel; labels are among them.
        notes: What a reader had to decide, for people.
    """

    columns: Mapping[str, list[str]]
    used: Mapping[str, str]
    unused: tuple[str, ...] = ()
    image: str = ""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def cell_text(value: Any) -> str:
    """Return a cell as text, "" for a cell that holds nothing.

    >>> cell_text(3.0), cell_text(None), cell_text(float("nan")), cell_text(" a ")
    ('3', '', '', 'a')
    """
    if value is None or value != value:  # noqa: PLR0124 -- not a number
        return ""
    # Data frames turn whole numbers into floats where a column has gaps: 3.0 is the class 3.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def plain_name(name: str) -> str:
    """Return a header name without case, spaces and marks.

    >>> plain_name(" Patient_ID "), plain_name("fileName")
    ('patientid', 'filename')
    """
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def candidates(header: Sequence[str], role: str) -> list[str]:
    """Return the columns that could have a role, several in case of doubt.

    A column that is called exactly like its role is preferred to every other.

    >>> candidates(["Class", "category", "image"], "label"), candidates(["label", "class"], "label")
    (['Class', 'category'], ['label'])
    """
    names = [name for name in header if name]
    if role in names:
        return [role]
    groups = ([name for name in names if plain_name(name) in group] for group in _NAMES[role])
    return next(filter(None, groups), [])


def find_columns(header: Sequence[str], file: Path, roles: Sequence[str] = ROLES) -> dict[str, str]:
    """Return role -> name of its column, without the roles that no column has.

    Under fewer `roles` the columns of the others may leave a doubt.

    Raises:
        DataError: Two columns have one name, or several could have one role.
    """
    fitting = {role: candidates(header, role) for role in roles}
    asked = [name for name in header if name] if tuple(roles) == ROLES else [*chain.from_iterable(fitting.values())]
    twice = sorted({name for name in asked if header.count(name) > 1})
    if twice:
        raise DataError(f"{file}, line 1: two columns are called {twice[0]}: rename or remove one of them")
    for role, names in fitting.items():
        if len(names) > 1:
            raise DataError(
                f"{file}: the columns {' and '.join(names)} could each be the {role}\n  rename the right one to {role}"
            )
    return {role: names[0] for role, names in fitting.items() if names}


def paths_by_content(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the only column of which most cells name images.

    >>> paths_by_content(["Datei", "Befund"], [["a.png", "x"], ["b.jpg", "y"]])
    'Datei'
    """
    # Headers are in every language; what the cells of this column look like is not.
    named = [
        name
        for place, name in enumerate(header)
        if name and 2 * sum(row[place].lower().endswith(IMAGE_SUFFIXES) for row in rows) > len(rows)
    ]
    return named[0] if len(named) == 1 else ""


def flag_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns of 0 and 1 for single classes.

    >>> flag_columns(["image", "cat", "dog"], [["a.png", "1.0", "0"], ["b.png", "0.0", ""]])
    ['cat', 'dog']
    """
    cells = {name: {row[place].lower() for row in rows} for place, name in enumerate(header) if name}
    return [name for name, found in cells.items() if found - {""} and found <= _FLAGS]


def find_label(header: Sequence[str], typed: Collection[str]) -> str:
    """Return the column of labels, "" if only synonyms are left.

    A column called label comes first, then the only one that is `typed` a ClassLabel, then the usual names, those of
    the type before others.

    >>> find_label(["img", "label", "breed"], ["breed"]), find_label(["img", "labels", "breed"], ["breed"])
    ('label', 'breed')
    """
    if "label" in header:
        return "label"
    if len(typed) == 1:
        return next(iter(typed))
    return next((name for names in (typed, header) for name in _FIRST_LABELS if name in names), "")


def find_groups(header: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the columns of units and clients by role.

    The second value is a phrase on each other column that could be one. Who reads a data set of the hub cannot rename
    its columns, so the first name in the documented order is taken.

    >>> find_groups(["subject_id", "img", "patient_id"])
    ({'unit': 'patient_id'}, ('the column subject_id (patient_id is the unit)',))
    """
    found, others = {}, []
    for role in ("unit", "client"):
        order = [*chain.from_iterable(_NAMES[role])]
        if names := sorted(candidates(header, role), key=lambda name: order.index(plain_name(name))):
            found[role] = names[0]
            more = [name for name in header if plain_name(name) in order and name != names[0]]
            others += [f"the column {name} ({names[0]} is the {role})" for name in more]
    return found, tuple(others)


def find_header(rows: Sequence[Sequence[str]], file: Path) -> int:
    """Return the first row that names most of the needed columns."""
    # People write a title above their table.
    return max(range(len(rows)), key=lambda row: num_needed(rows[row], file), default=0)


def num_needed(header: Sequence[str], file: Path) -> int:
    """Return how many of the two columns that a manifest needs a header has."""
    try:
        return len(find_columns(header, file).keys() & {"path", "label"})
    # A table in doubt is still one, but less than another without any.
    except DataError:
        return int(len(candidates(header, "path")) == 1)


def missing_column(file: Path, role: str, header: Sequence[str], flags: Sequence[str] = ()) -> DataError:
    """Return the error for a table without a column for a role.

    `flags` are columns of single classes.
    """
    names = [name for name in header if name]
    wanted = "path or image" if role == "path" and file.suffix.lower() == ".parquet" else role
    shown = ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
    advice = _advice(role, names)
    if len(flags) > 1:
        flagged = ", ".join(flags[:_MAX_SHOWN])
        advice = (
            f": {flagged} say 0 or 1 for single classes, so add a column label with the class that is 1 in each row"
        )
    return DataError(
        f"{file} lacks the column {wanted}; its columns are {shown or '(none)'}{advice}\n  a manifest has path (or "
        "image, with bytes, in Parquet) and label; unit, client and split (train or test) are optional"
    )


def _advice(role: str, names: Sequence[str]) -> str:
    # Lists of files often have no header, and spaces between their columns.
    words = [word.lower() for name in names for word in name.split()]
    if any(word.endswith(IMAGE_SUFFIXES) or "://" in word for word in words):
        return ": its first line must hold the names of the columns, with commas between them, such as path,label"
    known = {plain_name(name): name for name in names}
    usual = [*chain.from_iterable(_NAMES[role])]
    scores = {name: _likeness(plain, usual) for plain, name in known.items() if _likely_role(plain) == role}
    nearest = max(scores, key=lambda name: scores[name], default="")
    if scores.get(nearest, 0) >= 0.6:
        return f": is {nearest} the {role}? Then rename it to {role}"
    more = "; columns of single classes must become one with the name of that which is 1" if role == "label" else ""
    return f": rename the column with {_MEANINGS[role]} to {role}{more}"


def _likeness(plain: str, usual: Sequence[str]) -> float:
    return max(difflib.SequenceMatcher(None, plain, synonym).ratio() for synonym in usual)


def _likely_role(plain: str) -> str:
    """Return the role whose usual names a header name resembles most."""
    return max(ROLES, key=lambda role: _likeness(plain, [*chain.from_iterable(_NAMES[role])]))


def choose_split(found: dict[str, str], values: Sequence[str]) -> dict[str, str]:
    """Return the columns without a `split` that only resembles one.

    A column that is called `split` must hold parts. One that is called otherwise may mean something else.
    """
    is_split = plain_name(found.get("split", "split")) == "split"
    if is_split or {value.lower() for value in values if value not in MISSING} <= TRAIN | TEST | VALIDATION:
        return found
    return {role: name for role, name in found.items() if role != "split"}
