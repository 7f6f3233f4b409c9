"""Streams that an auditor puts in the place of the client's own: repeated, silent, or counted.

Production code has no seed and no hook: the bench replaces the class that clients make their streams of. A
release under such a stream is NOT PRIVATE, and none leaves the auditor's machine.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True)
class Draw:
    """One use of a stream.

    Attributes:
        stream: What the stream is for.
        size: How many numbers, or bytes.
    """

    stream: str
    size: int


@dataclass(frozen=True)
class Joins:
    """When the units behind the first ones join a batch.

    Attributes:
        first: Units that are drawn as ever; those behind them follow `steps`.
        steps: Numbers of the steps they join, from 0.
    """

    first: int
    steps: Collection[int]


class Repeated:
    """The same numbers each time, call by call.

    Call j gives the first values of sequence j, so that whoever draws more or fewer numbers in one call moves no
    other number: what is left of a difference between two replays is the data's.

    Args:
        purpose: Names the sequences.
        draws: Each use is added here.
        joins: For a sampling stream: forces late units in or out.
    """

    def __init__(self, purpose: str, draws: list[Draw], joins: Joins | None = None) -> None:
        self._purpose, self._draws, self._joins = purpose, draws, joins
        self._calls = 0

    def uniforms(self, size: int) -> np.ndarray:
        """(size,) float64 in (0, 1)."""
        values = self._next(size).uniform(2.0**-53, 1.0, size)
        if self._joins is not None:
            values[self._joins.first :] = 2.0**-53 if self._calls - 1 in self._joins.steps else _BELOW_ONE
        return values

    def random_bytes(self, size: int) -> bytes:
        """So many bytes."""
        return self._next(size).bytes(size)

    def _next(self, size: int) -> np.random.Generator:
        self._draws.append(Draw(self._purpose, size))
        self._calls += 1
        return np.random.default_rng([*self._purpose.encode(), self._calls])


class Silent:
    """A noise stream whose normals are all zero: what is left is the data's part of a release."""

    def uniforms(self, size: int) -> np.ndarray:
        """(size,) float64, all 1: the logarithm of each, and so its radius, is zero."""
        return np.ones(size)


class StreamFactory:
    """Stands where clients make their streams, and hands out one kind after another.

    Args:
        kinds: What to make in turn; starts again when it comes to its end.
    """

    def __init__(self, *kinds: object) -> None:
        self._kinds = cycle(kinds)

    def __call__(self) -> Any:
        """The next stream: an object as it is, or a new one of a class."""
        kind = next(self._kinds)
        return kind() if callable(kind) else kind
