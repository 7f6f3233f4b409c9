"""Fixed-point numbers without noise whose sum over all clients cannot leave the ring."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from common.secagg.primitives.ring import Ring, Words
from common.secagg.refusals import Refusal, SecureSumError

_MOST_BITS = 900
_LIMB_BITS, _CHUNK = 21, 1 << 20
_LIMB = (1 << _LIMB_BITS) - 1


@dataclass(frozen=True)
class FixedPoint:
    """A public agreement on how numbers become words.

    A value x becomes the whole number of steps of 2^-scale_bits next to it, towards zero.

    Guarantee: an encoded vector lies inside the ring, and so does the sum of its parts, which is exact.

    Attributes:
        ring: The words.
        scale_bits: Binary digits after the point, possibly negative.
        largest: Bound on the size of a value, in steps.
        largest_squares: Bound on the sum of squared values, in squared steps.

    Raises:
        SecureSumError: A value could leave the ring.
    """

    ring: Ring
    scale_bits: int
    largest: int
    largest_squares: int

    def __post_init__(self) -> None:
        if not 0 <= self.largest < 2 ** (self.ring.word_bits - 1):
            raise SecureSumError(Refusal.RANGE)

    @property
    def step(self) -> float:
        """The distance between neighbouring values."""
        return math.ldexp(1.0, -self.scale_bits)

    def part(self, share: Fraction) -> "FixedPoint":
        """Return the encoding of one of several vectors that together have this bound.

        Guarantee: the sum of any number of them lies inside the ring if their shares of the bound add up to at most 1.

        Raises:
            SecureSumError: The share is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise SecureSumError(Refusal.RANGE)
        squares = math.floor(self.largest_squares * share**2)
        return replace(self, largest=math.floor(self.largest * share), largest_squares=squares)

    def encode(self, values: NDArray[np.float64]) -> Words:
        """Return a clipped vector, (d,) float64, as words.

        Guarantee: the vector of steps has at most the agreed norm, whatever the input. A vector that exceeds it is
        scaled down, and one with a non-finite value becomes zero.
        """
        return self.ring.words_of(self._clipped_steps(np.asarray(values, dtype=np.float64)))

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Return a sum of encoded vectors as numbers, float64.

        Exact where the sum has at most 53 binary digits, as in every 32-bit ring. Otherwise it is rounded once.
        """
        return np.ldexp(self.ring.signed(words).astype(np.float64), -self.scale_bits)

    def _clipped_steps(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        most = self.largest_squares
        if not np.all(np.isfinite(values)) or self.largest == 0:
            return np.zeros(values.shape, dtype=np.int64)
        peak = float(np.max(np.abs(values), initial=0.0))
        # A huge value would overflow below. It becomes the largest one, and the others shrink with it.
        if Fraction(peak) * Fraction(2) ** self.scale_bits > self.largest:
            values = values / peak * math.ldexp(float(self.largest), -self.scale_bits)
        # Scaling by a power of two is exact. Rounding towards zero makes no value larger, so no norm either.
        steps = np.trunc(np.ldexp(values, self.scale_bits)).astype(np.int64)
        # The norm is checked again on the whole numbers that leave. The caller's own clip was rounded.
        while (squares := _sum_of_squares(steps)) > most:
            steps = np.trunc(steps * (math.sqrt(most / squares) * (1 - 2.0**-40))).astype(np.int64)
        return steps


@lru_cache(maxsize=64)
def choose_scale(*, longest: float, word_bits: int, largest_step: float) -> FixedPoint:
    """Return the finest encoding of vectors that fit the ring.

    Args:
        longest: Bound on the L2 norm of a vector, in its own units. It may be the sum of all clients' vectors, of which
            each encodes its part.
        word_bits: Of the ring, 32 to 64.
        largest_step: Coarsest step that the caller accepts, in the same units.

    Raises:
        SecureSumError: A bound is not a positive number, or not even the coarsest accepted step fits.
    """
    if not all(math.isfinite(number) and number > 0 for number in (longest, largest_step)):
        raise SecureSumError(Refusal.RANGE)
    ring, norm = Ring(word_bits), Fraction(longest)
    scale_bits = _floor_log2((2 ** (word_bits - 1) - 1) / norm)
    # Beyond these bits a float64 has neither such steps nor such values.
    if abs(scale_bits) >= _MOST_BITS or Fraction(2) ** -scale_bits > Fraction(largest_step):
        raise SecureSumError(Refusal.RANGE)
    scale = Fraction(2) ** scale_bits
    return FixedPoint(ring, scale_bits, math.floor(norm * scale), math.floor((norm * scale) ** 2))


def _floor_log2(number: Fraction) -> int:
    guess = number.numerator.bit_length() - number.denominator.bit_length()
    return guess if Fraction(2) ** guess <= number else guess - 1


def _sum_of_squares(steps: NDArray[np.int64], chunk_size: int = _CHUNK) -> int:
    """Return the exact sum of squares in whole numbers.

    Each number is split into limbs of 21 bits. Products of these and their sums over a chunk fit into 64 bits.
    """
    total, size = 0, np.abs(steps)
    for start in range(0, len(size), chunk_size):
        chunk = size[start : start + chunk_size]
        limbs = [chunk & _LIMB, chunk >> _LIMB_BITS & _LIMB, chunk >> 2 * _LIMB_BITS]
        for low, high in combinations_with_replacement(range(len(limbs)), 2):
            total += int(limbs[low] @ limbs[high]) << (low + high) * _LIMB_BITS + (low != high)
    return total
