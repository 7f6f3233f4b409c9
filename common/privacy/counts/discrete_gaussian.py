"""Exact discrete Gaussian noise for counts, without floating point in any decision.

Every choice compares whole numbers that fit in 64 bits. So the noise has exactly the stated distribution. A chance with
a long denominator is never formed. It is split into independent coins with short denominators.

Not protected: how long a draw takes, and how many bytes it reads, depend on the noise.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import numpy as np

from common.errors import ConfigError, PrivacyError

_FINE_STEPS = 1 << 10
LARGEST_FINE_STDDEV = 1 << 16
_LARGEST_STDDEV = 1 << 24
# Laplace magnitudes up to so many scales cannot overflow. A larger one has a chance under exp(-1023).
_LARGEST_SCALES = 1 << 10

# Takes items (indices into the caller's arrays), flips a coin for each, and returns the items with heads.
_Coin = Callable[[np.ndarray], np.ndarray]
# A coin that shows heads for every item.
_CERTAIN: _Coin = np.asarray


class ByteStream(Protocol):
    """A source of independent, uniform random bytes for one purpose in one message."""

    def random_bytes(self, size: int) -> bytes:
        """Return exactly `size` fresh bytes."""
        ...


def sampled_stddev(noise_stddev: Fraction | float) -> Fraction:
    """Return the noise parameter that `discrete_gaussian` really uses.

    The accountant must be given this parameter, in counts. Guarantee: it is never smaller than asked. It is larger by
    less than 1/1024 up to 65,536 and by less than 1 above. It is exact as a float, and applying this function again
    changes nothing.

    Raises:
        ConfigError: `noise_stddev` is not finite and positive, or is over 16,777,216.

    >>> sampled_stddev(4.0), sampled_stddev(0.3)
    (Fraction(4, 1), Fraction(77, 256))
    """
    if not 0 < noise_stddev <= _LARGEST_STDDEV:
        raise ConfigError(f"noise_stddev must be positive and at most {_LARGEST_STDDEV}, got {noise_stddev}")
    steps = _FINE_STEPS if noise_stddev <= LARGEST_FINE_STDDEV else 1
    return Fraction(math.ceil(Fraction(noise_stddev) * steps), steps)


def discrete_gaussian(size: int, *, noise_stddev: Fraction | float, stream: ByteStream) -> np.ndarray:
    """Draw whole numbers x with chance proportional to exp(-x^2 / (2 s^2)).

    The result is (size,) int64. Guarantee: the chances are exact, s is `sampled_stddev(noise_stddev)` in counts, draws
    are independent, and nothing is rounded or cut off. s is the parameter that accountants take. The standard deviation
    itself is a little smaller, by under 1e-6 of s from s = 1 on. `stream` must be used for noise only.

    Raises:
        ConfigError: `noise_stddev` is out of range, or `size` is negative.
        PrivacyError: A draw does not fit in 63 bits, with a chance under exp(-1023).

    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, Algorithm 3.
    """
    if size < 0:
        raise ConfigError(f"size must be at least 0, got {size}")
    stddev = sampled_stddev(noise_stddev)

    def attempt(count: int) -> np.ndarray:
        noise = laplace_attempts(count, scale=int(stddev) + 1, stream=stream)
        whole, rest, denominator = scaled_distance(np.abs(noise), stddev)
        return np.asarray(noise[bernoulli_exp_half_square(whole, rest, denominator, stream)])

    return _collect(size, attempt)


def uniform_below(bound: int, size: int, stream: ByteStream) -> np.ndarray:
    """Draw unbiased uniform numbers from 0 to bound - 1, shape (size,), int64.

    The bound is from 1 to 2^63.
    """
    # A word past the last whole multiple of the bound is drawn again. Keeping it would favour small numbers.
    last = np.uint64((1 << 64) - 1 - (1 << 64) % bound)

    def attempt(count: int) -> np.ndarray:
        words = np.frombuffer(stream.random_bytes(8 * count), dtype="<u8", count=count)
        return (words[words <= last] % np.uint64(bound)).astype(np.int64)

    return _collect(size, attempt)


def bernoulli_exp(numerators: np.ndarray, denominator: int, stream: ByteStream) -> np.ndarray:
    """Draw booleans with chance exp(-numerator / denominator) each, shape (n,).

    The chance is exact.

    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, Algorithm 1.
    """
    whole, rest = np.divmod(numerators, denominator)
    items = _heads_each_time(np.arange(numerators.size), whole, lambda some: _heads_exp(some, _CERTAIN, stream))
    items = _heads_exp(items, _ratio_coin(rest, denominator, stream), stream)
    return _mask(items, numerators.size)


def bernoulli_exp_half_square(whole: np.ndarray, rest: np.ndarray, denominator: int, stream: ByteStream) -> np.ndarray:
    """Draw booleans with chance exp(-(w + f)^2 / 2) each, shape (n,).

    Here w = whole and f = rest / denominator < 1. The chance is exact. The exponent is split into w^2/2 + w f + f^2/2,
    and a coin of chance f^2/2 is three coins. So no number longer than w^2 or the denominator is formed.
    """
    ratio = _ratio_coin(rest, denominator, stream)
    items = np.flatnonzero(bernoulli_exp(whole * whole, 2, stream))
    items = _heads_each_time(items, whole, lambda some: _heads_exp(some, ratio, stream))
    items = _heads_exp(items, lambda some: ratio(ratio(some[uniform_below(2, some.size, stream) == 0])), stream)
    return _mask(items, whole.size)


def laplace_attempts(count: int, *, scale: int, stream: ByteStream) -> np.ndarray:
    """Draw at most `count` whole numbers x with chance proportional to exp(-|x| / scale).

    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, Algorithm 2.
    """
    low = uniform_below(scale, count, stream)
    low = low[bernoulli_exp(low, scale, stream)]
    magnitudes = low + scale * _geometric(low.size, stream)
    negative = uniform_below(2, low.size, stream) == 1
    # Drop minus zero. Otherwise zero would come twice as often as it should.
    return np.asarray(np.where(negative, -magnitudes, magnitudes)[~(negative & (magnitudes == 0))])


def scaled_distance(magnitudes: np.ndarray, stddev: Fraction) -> tuple[np.ndarray, np.ndarray, int]:
    """Return |m - s^2 / t| / s exactly for (n,) magnitudes m.

    Here t = floor(s) + 1. The value is whole + rest / denominator, with whole and rest of shape (n,).

    Raises:
        PrivacyError: A magnitude is over 1024 t; up to that no product reaches 2^63.
    """
    top, bottom = stddev.numerator, stddev.denominator
    scale = top // bottom + 1
    if magnitudes.max(initial=0) > _LARGEST_SCALES * scale:
        raise PrivacyError("a noise draw is too large for exact 63-bit arithmetic; draw again")
    denominator = bottom * scale * top
    whole, rest = np.divmod(np.abs(magnitudes * (bottom * bottom * scale) - top * top), denominator)
    return whole, rest, denominator


def _geometric(size: int, stream: ByteStream) -> np.ndarray:
    """Count the heads of a coin of chance exp(-1) before its first tails."""
    counts, items = np.zeros(size, dtype=np.int64), np.arange(size)
    while items.size:
        items = _heads_exp(items, _CERTAIN, stream)
        counts[items] += 1
    return counts


def _ratio_coin(numerators: np.ndarray, denominator: int, stream: ByteStream) -> _Coin:
    """Return coins of chance numerator / denominator."""
    return lambda items: items[uniform_below(denominator, items.size, stream) < numerators[items]]


def _heads_exp(items: np.ndarray, coin: _Coin, stream: ByteStream) -> np.ndarray:
    """Flip coins of chance exp(-p), built from a coin of chance p.

    Coins of chance p, p/2, p/3, ... are flipped until one shows tails. The result is heads if an even number showed
    heads before.
    """
    odd = np.zeros(items.max(initial=-1) + 1, dtype=bool)
    left, turn = items, 1
    while left.size:
        left = coin(left)
        left = left[uniform_below(turn, left.size, stream) == 0]
        odd[left] ^= True
        turn += 1
    return np.asarray(items[~odd[items]])


def _heads_each_time(items: np.ndarray, times: np.ndarray, coin: _Coin) -> np.ndarray:
    """Return the items whose coin shows heads `times` times in a row.

    The order of the items is lost.
    """
    kept, turn = [items[:0]], 0
    while items.size:
        finished = times[items] <= turn
        kept.append(items[finished])
        items = coin(items[~finished])
        turn += 1
    return np.concatenate(kept)


def _mask(items: np.ndarray, size: int) -> np.ndarray:
    """Return a mask that is true at the items, shape (size,).

    The order of the items depends on the noise, so only masks may leave the coins.
    """
    mask = np.zeros(size, dtype=bool)
    mask[items] = True
    return mask


def _collect(size: int, attempt: Callable[[int], np.ndarray]) -> np.ndarray:
    """Repeat attempts until they have returned `size` values in all.

    An attempt may return fewer values than asked for, never more.
    """
    parts = [np.empty(0, dtype=np.int64)]
    while missing := size - sum(part.size for part in parts):
        parts.append(attempt(missing))
    return np.concatenate(parts)
