"""Numbering of privacy units and of the clients that a source names."""

from collections.abc import Hashable, Sequence

import numpy as np

from common.config.sections import Unit
from common.errors import DataError


def check_unit(unit: Unit, *, has_groups: bool) -> None:
    """Refuse to protect groups of images where the source names none.

    Raises:
        DataError: The unit is `group`, and the source does not say which images belong together.
    """
    if unit == "group" and not has_groups:
        raise DataError(
            "privacy.unit='group' needs a source that says which images belong together: a manifest with a column unit"
        )


def group_rows(unit_digests: np.ndarray | None, digests: np.ndarray) -> np.ndarray | None:
    """Number the groups of images that share a named unit.

    Copies of one image are not a group here: a bad copy could not be recognised, and no declared size may depend on
    which files are bad. `unit_digests`, (n, 32) uint8, hash the names of the images' units, or are an image's own
    digest where it has none. Groups are numbered by first appearance. The result is None if no image names a unit.

    >>> units = np.array([[7], [1], [7]], dtype=np.uint8)
    >>> group_rows(units, np.array([[0], [1], [2]], dtype=np.uint8)).tolist()
    [0, 1, 0]
    """
    if unit_digests is None:
        return None
    named = (unit_digests != digests).any(axis=1)
    if not named.any():
        return None
    # Rows without a name are keyed by their number, since equal digests of bad images must not make a group.
    rows = enumerate(zip(unit_digests, named, strict=True))
    return _number([unit.tobytes() if has_name else row for row, (unit, has_name) in rows])


def group_names(units: Sequence[str] | None) -> np.ndarray | None:
    """Number groups by name as `group_rows` does, taking each "" as a unit.

    >>> group_names(["ann", "", "", "ann"]).tolist()
    [0, 1, 2, 0]
    """
    if units is None or not any(units):
        return None
    return _number([unit or row for row, unit in enumerate(units)])


def natural_clients(clients: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the sorted clients with each entry's position among them, -1 without a client.

    >>> names, position = natural_clients(["ward 2", "", "ward 1"])
    >>> names, position.tolist()
    (('ward 1', 'ward 2'), [1, -1, 0])
    """
    if clients is None:
        return (), None
    names = tuple(sorted({name for name in clients if name}))
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number.get(name, -1) for name in clients], dtype=np.int32)


def _number(keys: Sequence[Hashable]) -> np.ndarray:
    """Number equal keys alike, by first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def unit_numbers(digests: np.ndarray, unit_digests: np.ndarray | None) -> np.ndarray:
    """Number the privacy units of images, taking copies as one unit.

    Copies and groups connect images over any number of steps.

    >>> unit_numbers(np.array([[1], [2], [1], [3]]), np.array([[7], [8], [8], [9]])).tolist()
    [0, 0, 0, 3]
    """
    if not len(digests):
        return np.zeros(0, dtype=np.int64)
    # Mostly no image has a copy. The general way takes ten times as long, for each client of a simulation.
    if unit_digests is None and len(set(map(bytes, digests))) == len(digests):
        return np.arange(len(digests))
    keys = [digests] if unit_digests is None else [digests, unit_digests]
    members = [np.unique(key, axis=0, return_inverse=True)[1].ravel() for key in keys]
    numbers = np.arange(len(digests))
    # A copy can join two groups, which joins all their images: repeat until no number falls any more.
    while True:
        before = numbers
        for member in members:
            least = np.full(member.max() + 1, len(digests))
            np.minimum.at(least, member, numbers)
            numbers = least[member]
        if np.array_equal(before, numbers):
            return numbers


def most_frequent(labels: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each group, the smallest of equally frequent ones.

    >>> most_frequent(np.array([2, 1, 1, 0]), np.array([0, 0, 0, 1])).tolist()
    [1, 0]
    """
    classes, coded = np.unique(labels, return_inverse=True)
    counts = np.zeros((member.max() + 1, len(classes)), dtype=np.int64)
    np.add.at(counts, (member, coded), 1)
    return np.asarray(classes[counts.argmax(axis=1)])
