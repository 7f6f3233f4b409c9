"""Gaussian noise on whole numbers from one table, with a bounded error.

The noise is a sum of table draws with whole factors. Nothing is rounded after a draw, so the only errors are the
table's and those of the sums. docs/privacy.md has the proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from math import isqrt

import numpy as np

from common.errors import ConfigError
from common.privacy.counts.discrete_gaussian import ByteStream

# A draw's law and a rounded normal's differ by at most this total variation. A test recomputes it from what follows.
TOTAL_VARIATION = 2.0**-448
# Standard deviation of a table draw. The table ends at 26 of it.
TABLE_STDDEV = 1 << 10
TABLE_END = 26 * TABLE_STDDEV
# Bits of a chance in the table.
CHANCE_BITS = 480
# A factor and all smaller ones together grow by at most this, so that each sum is smooth on the whole numbers.
MAX_GROWTH = 1 << 8
# Standard deviation of the rounding that turns a normal into whole numbers.
ROUNDING_STDDEV = 4
MAX_STDDEV = 1 << 46
_COLUMNS = 1 << 16
_COIN_BITS = 16
# Further bytes of a coin whose first 16 bits tie.
TIE_BYTES = (CHANCE_BITS - _COIN_BITS) // 8
_GUARD_BITS = 64
# So many values at once stay in a core's cache.
VALUES_AT_ONCE = 6_400


@dataclass(frozen=True)
class AliasTable:
    """A discrete Gaussian of standard deviation `TABLE_STDDEV` as 65,536 equally likely columns.

    A column, read as a number of 16 bits with sign, is the draw itself with chance `keep` / 2^480 and its alias
    otherwise.

    Attributes:
        keep: Each column's chance, whole numbers of `CHANCE_BITS` bits.
        keep_top: The first 16 of these bits, (65536,) uint16.
        alias: Each column's other value, (65536,) int16.
    """

    keep: tuple[int, ...]
    keep_top: np.ndarray
    alias: np.ndarray

    def draw(self, size: int, stream: ByteStream) -> np.ndarray:
        """Return independent draws, shape (size,), int16."""
        column, coin = np.frombuffer(stream.random_bytes(4 * size), dtype="<u2").reshape(2, size)
        index = column.astype(np.intp)
        limit = self.keep_top.take(index)
        values = np.where(coin < limit, column.view(np.int16), self.alias.take(index))
        # The first 16 bits of these coins do not decide. One coin in 65,536 is like that.
        for tie in np.flatnonzero(coin == limit):
            if self._keeps(int(column[tie]), int(coin[tie]), stream):
                values[tie] = column.view(np.int16)[tie]
        return np.asarray(values)

    def _keeps(self, column: int, coin: int, stream: ByteStream) -> bool:
        return (coin << 8 * TIE_BYTES) + int.from_bytes(stream.random_bytes(TIE_BYTES)) < self.keep[column]


@cache
def alias_table() -> AliasTable:
    """Return the noise table.

    A process makes it once, in about 0.1 s.

    Source: Walker 1977, doi:10.1145/355744.355749; Vose 1991, doi:10.1109/32.92917 (the alias method).
    """
    full = 1 << CHANCE_BITS
    left, alias = _weights(), list(range(_COLUMNS))
    keep = [full - 1] * _COLUMNS
    small = [column for column in range(_COLUMNS) if left[column] < full]
    large = [column for column in range(_COLUMNS) if left[column] >= full]
    # The list grows while it is read: a column that gave too much away needs an alias itself.
    for column in small:
        giver = large[-1]
        keep[column], alias[column] = left[column], giver
        left[giver] -= full - left[column]
        if left[giver] < full:
            small.append(large.pop())
    top = np.array([chance >> (CHANCE_BITS - _COIN_BITS) for chance in keep], dtype=np.uint16)
    return AliasTable(tuple(keep), top, np.array(alias, dtype=np.uint16).view(np.int16))


def _weights() -> list[int]:
    """Return each column's chance in units of 2^-496, whole numbers that sum to 2^496."""
    bits = CHANCE_BITS + _GUARD_BITS
    with localcontext() as context:
        context.prec = 200
        ratio = int((Decimal(-1) / (2 * TABLE_STDDEV**2)).exp() * (1 << bits))
    square, heights = ratio * ratio >> bits, [1 << bits]
    # exp(-(k + 1)^2 / 2t^2) = exp(-k^2 / 2t^2) times an odd power of `ratio`.
    for _ in range(TABLE_END):
        heights.append(heights[-1] * ratio >> bits)
        ratio = ratio * square >> bits
    whole = _COLUMNS << CHANCE_BITS
    scale = (whole << bits) // (2 * sum(heights) - heights[0])
    half = [height * scale >> bits for height in heights]
    unused = _COLUMNS - 2 * TABLE_END - 1
    weights = [*half, *[0] * unused, *half[:0:-1]]
    # What rounding down has left over goes to zero.
    weights[0] += whole - sum(weights)
    return weights


@cache
def factors(stddev: Fraction) -> tuple[int, ...]:
    """Return the whole factors of the table draws whose sum is one value.

    Guarantee: the sum's variance is at least stddev^2 + `ROUNDING_STDDEV`^2, so noise is never weaker than asked. The
    first factor is 1, and the norm of the first j + 1 factors is at most `MAX_GROWTH` times that of the first j.

    Raises:
        ConfigError: `stddev` is not positive, or over `MAX_STDDEV`.

    >>> factors(Fraction(20_000_000))
    (1, 77, 19532)
    """
    if not 0 < stddev <= MAX_STDDEV:
        raise ConfigError(
            f"noise of {float(stddev):.4g} grid steps is not between 0 and {MAX_STDDEV}: change the noise"
        )
    # Whole squares of the norms that the first factors must reach, from all of them down to one factor.
    norms = [-(-(stddev**2 + ROUNDING_STDDEV**2) // TABLE_STDDEV**2)]
    while norms[-1] > 1:
        norms.append(-(-norms[-1] // (MAX_GROWTH - 1) ** 2))
    found, reached = [1], 1
    for wanted in norms[-2::-1]:
        found.append(isqrt(max(0, wanted - reached - 1)) + 1)
        reached += found[-1] ** 2
    return tuple(found)


def largest_integer(stddev: Fraction) -> int:
    """Return the largest magnitude that `gaussian_integers` can draw.

    It is about 26 times `stddev`. The mass of a normal beyond it is a part of `TOTAL_VARIATION`.

    Raises:
        ConfigError: `stddev` is out of range.
    """
    return TABLE_END * sum(factors(stddev))


def gaussian_integers(size: int, *, stddev: Fraction, stream: ByteStream) -> np.ndarray:
    """Draw Gaussian noise on whole numbers, shape (size,), float64.

    Guarantee: there is a standard deviation of at least `stddev` such that a normal draw of it, rounded at random to a
    whole number, has the same law up to `TOTAL_VARIATION`. The rounding does not depend on the data. So what is proven
    for a normal on a sum of whole numbers holds for this noise. `stream` must be used for noise only.

    Raises:
        ConfigError: `stddev` is out of range.

    Source: Peikert 2010, doi:10.1007/978-3-642-14623-7_5, Theorem 3.1; Micciancio and Walter 2017,
    doi:10.1007/978-3-319-63715-0_16 (sums of discrete Gaussians).
    """
    # Not a number until it is drawn, so that no value without noise could pass for a noised one.
    scales, noise = factors(stddev), np.full(size, np.nan)
    for start in range(0, size, VALUES_AT_ONCE):
        _fill(noise[start : start + VALUES_AT_ONCE], scales, stream)
    return noise


def _fill(values: np.ndarray, scales: Sequence[int], stream: ByteStream) -> None:
    draws = alias_table().draw(len(scales) * values.size, stream).reshape(len(scales), values.size)
    # Exact: every product and every partial sum is a whole number below 2^53.
    np.matmul(np.array(scales, dtype=np.float64), draws.astype(np.float64), out=values)
