"""Subgroups of a table's images by one of its columns."""

from collections.abc import Sequence

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.manifest import read_column
from common.errors import DataError


def subgroups_of(data: DataConfig, count: int, *, joined: bool = False) -> np.ndarray | None:
    """Return the place of each image's subgroup in the public list, (count,) int64.

    Rows are those of the source's entries. Values that the list does not name, also missing ones, are the last
    subgroup. The result is None if the run has no subgroups. A client that has joined, `joined`, is silent about a
    table that cannot be read or lacks the column: all of its images are then of the last subgroup.

    Raises:
        DataError: The source is not a table, or lacks the column.
    """
    names = data.subgroup_names
    if not names:
        return None
    try:
        return numbered_values(read_column(data, data.subgroup_column), names, count)
    except Exception:
        # The server chooses the column, and must not learn from a refusal which ones a client has, or what is in them:
        # dates that Python cannot hold raise errors of their own.
        if not joined:
            raise
        return np.full(count, len(names) - 1, dtype=np.int64)


def numbered_values(values: Sequence[str], names: Sequence[str], count: int) -> np.ndarray:
    """Return the place of each value among names, the last for all others.

    >>> numbered_values(["m", "f", "", "x"], ["f", "m", "other"], 4)
    array([1, 0, 2, 2])

    Raises:
        DataError: The number of values is not `count`, because the table changed meanwhile.
    """
    if len(values) != count:
        raise DataError("the table has changed since its images were read: start again")
    number = {name: place for place, name in enumerate(names)}
    return np.array([number.get(value, len(names) - 1) for value in values], dtype=np.int64)
