"""Exact discrete Gaussian noise for counts: whole numbers only, no floating point in any decision.

Every choice compares whole numbers that fit in 64 bits, so the law of the noise is
the stated one and not an approximation of it. A chance with a long denominator is
never formed: it is taken apart into independent coins with short ones.

Not protected: how long a draw takes, and how many bytes it reads, depend on the noise.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import numpy as np

from common.errors import ConfigError, PrivacyError

_FINE_STEPS = 1 << 10
_LARGEST_FINE_STDDEV = 1 << 16
_LARGEST_STDDEV = 1 << 24
# Laplace magnitudes up to so many scales cannot overflow; a longer one has chance under exp(-1023).
_LARGEST_SCALES = 1 << 10

# One flip for each item (an index into the caller's arrays); returns the items with heads.
_Coin = Callable[[np.ndarray], np.ndarray]
_CERTAIN: _Coin = np.asarray  # Heads for every item.


class ByteStream(Protocol):
    """A source of independent, uniform random bytes for one purpose in one message."""

    def random_bytes(self, size: int) -> bytes:
        """Exactly `size` fresh bytes."""
        ...


def sampled_stddev(noise_stddev: Fraction | float) -> Fraction:
    """The parameter that `discrete_gaussian` really uses; give this one to the accountant.

    Guarantee: never smaller than asked; larger by less than 1/1024 up to 65,536 and
    by less than 1 above; exact as a float; applying it again changes nothing.

    Args:
        noise_stddev: In counts; a float means the exact rational number it stores.

    Raises:
        ConfigError: It is not finite and positive, or is over 16,777,216.

    >>> sampled_stddev(4.0), sampled_stddev(0.3)
    (Fraction(4, 1), Fraction(77, 256))
    """
    if not 0 < noise_stddev <= _LARGEST_STDDEV:
        raise ConfigError(f"noise_stddev must be positive and at most {_LARGEST_STDDEV}, got {noise_stddev}")
    steps = _FINE_STEPS if noise_stddev <= _LARGEST_FINE_STDDEV else 1
    return Fraction(math.ceil(Fraction(noise_stddev) * steps), steps)


def discrete_gaussian(size: int, *, noise_stddev: Fraction | float, stream: ByteStream) -> np.ndarray:
    """Draw whole numbers x with chance proportional to exp(-x^2 / (2 s^2)), exactly.

    Guarantee: s is `sampled_stddev(noise_stddev)`; draws are independent; nothing is
    rounded or cut off. s is the parameter that accountants take, not a moment: the
    standard deviation is a little smaller than s, by under 1e-6 of it from s = 1 on.

    Args:
        size: How many draws; may be 0.
        noise_stddev: s before it is rounded up, in counts.
        stream: A stream used for noise only.

    Returns:
        (size,) int64.

    Raises:
        ConfigError: `noise_stddev` is out of range, or `size` is negative.
        PrivacyError: A draw would not fit; has chance under exp(-1023).

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
    """(size,) int64, uniform over 0 .. bound - 1 without bias; the bound is 1 to 2^63."""
    # A word past the last whole multiple of the bound is thrown away and drawn again.
    last = np.uint64((1 << 64) - 1 - (1 << 64) % bound)

    def attempt(count: int) -> np.ndarray:
        words = np.frombuffer(stream.random_bytes(8 * count), dtype="<u8", count=count)
        return (words[words <= last] % np.uint64(bound)).astype(np.int64)

    return _collect(size, attempt)


def bernoulli_exp(numerators: np.ndarray, denominator: int, stream: ByteStream) -> np.ndarray:
    """(n,) bool, each true with chance exp(-numerator / denominator), exactly; arXiv:2004.00010, Algorithm 1."""
    whole, rest = np.divmod(numerators, denominator)
    items = _heads_each_time(np.arange(numerators.size), whole, lambda some: _heads_exp(some, _CERTAIN, stream))
    items = _heads_exp(items, _ratio_coin(rest, denominator, stream), stream)
    return _mask(items, numerators.size)


def bernoulli_exp_half_square(whole: np.ndarray, rest: np.ndarray, denominator: int, stream: ByteStream) -> np.ndarray:
    """(n,) bool, each true with chance exp(-(w + f)^2 / 2), exactly, where w = whole and f = rest / denominator < 1.

    The exponent is taken apart into w^2/2 + w f + f^2/2, and a coin of chance f^2/2 is
    three coins, so nothing longer than w^2 or the denominator is formed.
    """
    ratio = _ratio_coin(rest, denominator, stream)
    items = np.flatnonzero(bernoulli_exp(whole * whole, 2, stream))
    items = _heads_each_time(items, whole, lambda some: _heads_exp(some, ratio, stream))
    items = _heads_exp(items, lambda some: ratio(ratio(some[uniform_below(2, some.size, stream) == 0])), stream)
    return _mask(items, whole.size)


def laplace_attempts(count: int, *, scale: int, stream: ByteStream) -> np.ndarray:
    """(at most count,) int64, chance proportional to exp(-|x| / scale); arXiv:2004.00010, Algorithm 2."""
    low = uniform_below(scale, count, stream)
    low = low[bernoulli_exp(low, scale, stream)]
    magnitudes = low + scale * _geometric(low.size, stream)
    negative = uniform_below(2, low.size, stream) == 1
    # Zero would come twice as often as it should if minus zero counted.
    return np.asarray(np.where(negative, -magnitudes, magnitudes)[~(negative & (magnitudes == 0))])


def scaled_distance(magnitudes: np.ndarray, stddev: Fraction) -> tuple[np.ndarray, np.ndarray, int]:
    """| m - s^2 / t | / s for (n,) magnitudes m and t = floor(s) + 1, exactly: whole (n,) + rest (n,) / denominator.

    Raises:
        PrivacyError: A magnitude is over 1024 t; up to there no product reaches 2^63.
    """
    top, bottom = stddev.numerator, stddev.denominator
    scale = top // bottom + 1
    if magnitudes.max(initial=0) > _LARGEST_SCALES * scale:
        raise PrivacyError("a noise draw is too large for exact 63-bit arithmetic; draw again")
    denominator = bottom * scale * top
    whole, rest = np.divmod(np.abs(magnitudes * (bottom * bottom * scale) - top * top), denominator)
    return whole, rest, denominator


def _geometric(size: int, stream: ByteStream) -> np.ndarray:
    """(size,) int64: how often a coin of chance exp(-1) shows heads before its first tails."""
    counts, items = np.zeros(size, dtype=np.int64), np.arange(size)
    while items.size:
        items = _heads_exp(items, _CERTAIN, stream)
        counts[items] += 1
    return counts


def _ratio_coin(numerators: np.ndarray, denominator: int, stream: ByteStream) -> _Coin:
    """Coins of chance numerator / denominator."""
    return lambda items: items[uniform_below(denominator, items.size, stream) < numerators[items]]


def _heads_exp(items: np.ndarray, coin: _Coin, stream: ByteStream) -> np.ndarray:
    """Flip coins of chance exp(-p) given a coin of chance p: heads if the run of p, p/2, p/3, ... is even."""
    odd = np.zeros(items.max(initial=-1) + 1, dtype=bool)
    left, turn = items, 1
    while left.size:
        left = coin(left)
        left = left[uniform_below(turn, left.size, stream) == 0]
        odd[left] ^= True
        turn += 1
    return np.asarray(items[~odd[items]])


def _heads_each_time(items: np.ndarray, times: np.ndarray, coin: _Coin) -> np.ndarray:
    """Flip each item's coin as often as `times` says; heads only if all flips are. The order is lost."""
    kept, turn = [items[:0]], 0
    while items.size:
        finished = times[items] <= turn
        kept.append(items[finished])
        items = coin(items[~finished])
        turn += 1
    return np.concatenate(kept)


def _mask(items: np.ndarray, size: int) -> np.ndarray:
    """True at the items. Order carries information about size, so only masks leave the coins."""
    mask = np.zeros(size, dtype=bool)
    mask[items] = True
    return mask


def _collect(size: int, attempt: Callable[[int], np.ndarray]) -> np.ndarray:
    """(size,) int64 from attempts that may return fewer values than asked for, never more."""
    parts = [np.empty(0, dtype=np.int64)]
    while missing := size - sum(part.size for part in parts):
        parts.append(attempt(missing))
    return np.concatenate(parts)
