"""Conversion of label names to class numbers."""

import numpy as np


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
