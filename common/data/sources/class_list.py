"""Relabelling of a source by the public class list of a run."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from common.config.listed_values import join_names
from common.data.folders.similar_names import nearest, nearest_words
from common.data.sources.base_source import Entries, ImageSource
from common.errors import DataError

_MAX_NAMES = 12


def with_classes(source: ImageSource, wanted: tuple[str, ...]) -> ImageSource:
    """Return the same images under the run's public class list.

    Raises:
        DataError: The list has fewer than two names, or one twice.
    """
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise DataError(
            f"data.classes={join_names(wanted)!r}: give at least two different names, joined by commas"
            f"{_one_name(wanted)}"
        )
    fingerprint = hashlib.sha256(repr((source.fingerprint, wanted)).encode()).hexdigest()
    return replace(source, fingerprint=fingerprint, load=lambda: _relabelled(source, wanted), is_relabelled=True)


def _relabelled(source: ImageSource, wanted: tuple[str, ...]) -> Entries:
    entries = source.entries
    names = entries.classes
    # A source whose classes are plain numbers means positions in the list.
    if all(name.isdecimal() for name in names) and not set(names) & set(wanted):
        names = tuple(wanted[int(name)] if int(name) < len(wanted) else name for name in names)
    table = np.array([*(wanted.index(name) if name in wanted else -1 for name in names), -1], dtype=np.int64)
    # A label of -1 takes the last entry of the table, which is -1.
    labels = table[entries.labels]
    faults = dict(entries.label_faults)
    for row in np.flatnonzero((labels < 0) & (entries.labels >= 0)).tolist():
        faults[row] = f"unknown class {names[entries.labels[row]]!r}: not in data.classes"
    counts = np.bincount(entries.labels[entries.labels >= 0], minlength=len(names)).tolist()
    remarks = _remarks(dict(zip(names, counts, strict=True)), wanted)
    return replace(entries, labels=labels, classes=wanted, label_faults=faults, class_remarks=remarks)


def _remarks(counts: dict[str, int], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return remarks on classes that are missing or left out."""
    left = {name: count for name, count in counts.items() if name not in wanted}
    missing = [
        name + (_joined(name, left) or nearest_words(nearest(name, left))) for name in wanted if not counts.get(name)
    ]
    shown = [f"{name} ({count:,} images)" for name, count in left.items()]
    return tuple(
        f"{what} {_shortened(names)}"
        for what, names in (("no image of", missing), ("data.classes leaves out", shown))
        if names
    )


def _one_name(wanted: tuple[str, ...]) -> str:
    """Return a remark on several names that are written as one."""
    names = _pieces(wanted[0]) if len(wanted) == 1 else []
    if len(names) < 2:
        return ""
    return f"\n  {wanted[0]} is one name here; if it is {len(names)}: {','.join(names)}, or --class once for each name"


def _joined(name: str, known: Collection[str]) -> str:
    """Return a remark on a name that joins classes without a comma."""
    names = _pieces(name)
    return f" ({' and '.join(names)} are classes: put a comma between them)" if set(names) <= set(known) else ""


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"[\s;,|/]+", name.strip("[]()")) if piece]


def _shortened(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more:,} more" if more > 0 else "")
