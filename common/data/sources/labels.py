"""Class numbers for labels of any type."""

import numpy as np


def numbered(names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices into the sorted list of their names; "" becomes -1.

    Names that are all numbers are sorted as numbers.

    >>> numbered(["10", "2", "", "2"])[1]
    ('2', '10')
    """
    present = {name for name in names if name}
    all_numbers = all(name.isdecimal() for name in present)
    classes = tuple(sorted(present, key=(lambda name: (int(name), name)) if all_numbers else None))
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64), classes
