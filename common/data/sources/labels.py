"""Conversion of label names to class numbers."""

import re
from collections.abc import Collection, Sequence

import numpy as np

# What pandas writes and reads for a missing value.
MISSING = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)
_WHOLE = re.compile(r"([+-]?\d+)([.,]0+)?")


# What tables put between the labels of an image that has several.
_JOINTS = "|;,/+&"
_MAX_SHOWN = 3


def joined_labels(texts: Sequence[str], title: str) -> str:
    """Return a doubt about rows that have several labels.

    A text joins labels if one of its pieces alone is the label of other rows.

    >>> joined_labels(["cat", "dog", "n/a", "cat/dog", "lung, left"], "t.csv").splitlines()[0]
    't.csv: 1 row has several labels, such as cat/dog, and an image has one class'
    """
    known, joints = set(texts) - {""}, re.compile(f"[{re.escape(_JOINTS)}]")
    pieces = {text: [piece.strip() for piece in joints.split(text)] for text in known}
    several = {text for text, found in pieces.items() if len(found) > 1 and all(found) and known & set(found)}
    if not several:
        return ""
    rows = sum(text in several for text in texts)
    count = f"{rows:,} rows have" if rows > 1 else "1 row has"
    return (
        f"{title}: {count} several labels, such as {' and '.join(sorted(several)[:_MAX_SHOWN])}, and an image has one "
        "class\n  write one label into each row, or list the classes with data.classes, joined ones too if they are "
        "classes: other rows are then left out"
    )


def numbered(names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as indices into the sorted class names with these names.

    Names that are all numbers are sorted as numbers. An empty name is not a class: its label is -1.

    >>> labels, classes = numbered(["10", "2", "", "2"])
    >>> labels.tolist(), classes
    ([1, 0, -1, 0], ('2', '10'))
    """
    present = {name for name in names if name}
    all_numbers = all(name.isdecimal() for name in present)
    classes = tuple(sorted(present, key=(lambda name: (int(name), name)) if all_numbers else None))
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64), classes


def label_names(texts: Sequence[str], wanted: Collection[str] = ()) -> list[str]:
    """Return a column's labels, with "" where one is missing.

    Missing is what pandas takes for it, and -1. Where all labels are whole numbers, 0.0 is 0. A name that the run's
    class list holds is a class, whatever it says.

    >>> label_names(["0.0", "1", "-1", "NaN"]), label_names(["mild", "None"], ["None", "mild"])
    (['0', '1', '', ''], ['mild', 'None'])
    """
    listed = set(wanted)
    names = ["" if text in MISSING and text not in listed else text for text in texts]
    numbers = {name: _WHOLE.fullmatch(name) for name in set(names) - {""}}
    if not listed & numbers.keys() and all(numbers.values()):
        names = [number[1] if (number := numbers.get(name)) else "" for name in names]
    return ["" if name == "-1" and name not in listed else name for name in names]
