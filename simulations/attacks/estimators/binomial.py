"""Exact confidence bounds on a rate from a count (Clopper and Pearson)."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from common.errors import ConfigError

Floats = npt.NDArray[np.float64]


def rate_upper_bound(count: int, trials: int, *, confidence: float) -> float:
    """Return the largest rate that `count` events in `trials` do not refute.

    Guarantee: over independent trials with one rate, the bound is below that rate with
    chance at most 1 - `confidence`, whatever the rate is.

    Args:
        count: Number of trials with the event, in 0..`trials`.
        trials: Number of independent trials, at least 1.
        confidence: Confidence of this one-sided bound, in (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.

    >>> round(rate_upper_bound(0, 10, confidence=0.95), 6) == round(1 - 0.05**0.1, 6)
    True
    """
    _check(count, trials)
    return float(rate_upper_bounds(trials, confidence)[count])


def rate_lower_bound(count: int, trials: int, *, confidence: float) -> float:
    """Return the smallest rate that `count` events in `trials` do not refute.

    Args:
        count: Number of trials with the event, in 0..`trials`.
        trials: Number of independent trials, at least 1.
        confidence: Confidence of this one-sided bound, in (0, 1).

    Raises:
        ConfigError: An argument is out of range.
    """
    _check(count, trials)
    return 1.0 - float(rate_upper_bounds(trials, confidence)[trials - count])


@lru_cache(maxsize=256)
def rate_upper_bounds(trials: int, confidence: float) -> Floats:
    """Return `rate_upper_bound` for every count from 0 to `trials`.

    Args:
        trials: Number of independent trials, at least 1.
        confidence: Confidence of each one-sided bound, in (0, 1).

    Returns:
        (trials + 1,) float64, strictly increasing up to 1, read-only; entry k is for a count of k.

    Raises:
        ConfigError: An argument is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"audit: confidence must be between 0 and 1, got {confidence}")
    if trials < 1:
        raise ConfigError(f"audit: a rate needs at least one trial, got {trials}")
    counts = np.arange(trials, dtype=np.float64)
    # A count of `trials` refutes no rate, and the formula is not defined for it.
    bounds = np.append(betaincinv(counts + 1.0, trials - counts, confidence), 1.0)
    # The cache returns the same array to every caller.
    bounds.setflags(write=False)
    return bounds


def _check(count: int, trials: int) -> None:
    if not 0 <= count <= trials:
        raise ConfigError(f"audit: a count must lie in 0..{trials}, got {count}")
