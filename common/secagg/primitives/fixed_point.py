"""Fixed-point numbers whose sum over all clients cannot leave the ring."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
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

    Guarantee: the sum of `num_clients` encoded vectors, noise included, lies inside the ring and is exact.

    Attributes:
        ring: The words.
        scale_bits: Binary digits after the point, possibly negative.
        largest: Bound on the size of one client's value, in steps, without noise.
        largest_squares: Bound on the sum of one client's squared values, in squared steps.
        noise_bound: Bound on the size of one client's noise in one value, in steps.
        num_clients: Clients that may be in one sum.

    Raises:
        SecureSumError: The sum could leave the ring.
    """

    ring: Ring
    scale_bits: int
    largest: int
    largest_squares: int
    noise_bound: int
    num_clients: int

    def __post_init__(self) -> None:
        if min(self.largest, self.noise_bound, self.num_clients - 1) < 0 or not self.fits:
            raise SecureSumError(Refusal.RANGE)

    @property
    def step(self) -> float:
        """The distance between neighbouring values."""
        return math.ldexp(1.0, -self.scale_bits)

    @property
    def fits(self) -> bool:
        """An answer to whether the largest possible sum stays inside the ring."""
        return bool(self.num_clients * (self.largest + self.noise_bound) < 2 ** (self.ring.word_bits - 1))

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

    def encode(self, values: NDArray[np.float64], noise: NDArray[np.int64] | None = None) -> Words:
        """Return a clipped vector as words, with noise in whole steps added.

        Guarantee: the vector of steps without noise has at most the agreed norm, whatever the input. A vector that
        exceeds it is scaled down, and one with a non-finite value becomes zero.

        Args:
            values: Shape (d,), float64, clipped by the caller.
            noise: Shape (d,), int64, in steps. None adds nothing.

        Raises:
            SecureSumError: The noise has the wrong shape or exceeds its bound.
        """
        return self._with_noise(self._clipped_steps(np.asarray(values, dtype=np.float64)), noise)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Return a sum of encoded vectors as numbers, float64.

        Exact where the sum has at most 53 binary digits, as in every 32-bit ring. Otherwise it is rounded once.
        """
        return np.ldexp(self.ring.signed(words).astype(np.float64), -self.scale_bits)

    def _with_noise(self, steps: NDArray[np.int64], noise: NDArray[np.int64] | None) -> Words:
        if noise is None:
            return self.ring.words_of(steps)
        noise = np.asarray(noise)
        # Noise past the bound could wrap the sum of all. The sampler truncates; this refuses one that does not.
        outside = (noise < -self.noise_bound) | (noise > self.noise_bound)
        if noise.dtype != np.int64 or noise.shape != steps.shape or np.any(outside):
            raise SecureSumError(Refusal.RANGE)
        return self.ring.words_of(steps + noise)

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


def choose_scale(
    *, num_clients: int, clipping_norm: float, noise_bound: float, word_bits: int, largest_step: float
) -> FixedPoint:
    """Return the finest encoding whose sum over all clients fits the ring.

    Args:
        num_clients: Clients that may be in one sum.
        clipping_norm: Bound on the L2 norm of one client's vector, in its own units.
        noise_bound: Public bound on one client's noise in one value, in the same units.
        word_bits: Of the ring, 32 to 64.
        largest_step: Coarsest step that the caller accepts, in the same units.

    Raises:
        SecureSumError: A bound is not a positive number, or not even the coarsest accepted step fits.
    """
    numbers = (clipping_norm, largest_step, noise_bound)
    if not all(map(math.isfinite, numbers)) or min(numbers[:2]) <= 0 or noise_bound < 0 or num_clients < 1:
        raise SecureSumError(Refusal.RANGE)
    ring, norm, noise = Ring(word_bits), Fraction(clipping_norm), Fraction(noise_bound)
    # Steps of one client that the ring has room for, less one for rounding the noise bound up.
    room = Fraction(2 ** (word_bits - 1) - 1, num_clients) - 1
    scale_bits = _floor_log2(room / (norm + noise)) if room > 0 else -_MOST_BITS
    # Beyond these bits a float64 has neither such steps nor such values.
    if abs(scale_bits) >= _MOST_BITS or Fraction(2) ** -scale_bits > Fraction(largest_step):
        raise SecureSumError(Refusal.RANGE)
    scale = Fraction(2) ** scale_bits
    return FixedPoint(
        ring,
        scale_bits,
        math.floor(norm * scale),
        math.floor((norm * scale) ** 2),
        math.ceil(noise * scale),
        num_clients,
    )


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
