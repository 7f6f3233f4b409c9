"""How large or small a rate can be, given how often something was counted (Clopper and Pearson)."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from common.errors import ConfigError

Floats = npt.NDArray[np.float64]


def rate_upper_bound(count: int, trials: int, *, confidence: float) -> float:
    """The largest rate under which so few counts are not yet too rare.

    Guarantee: over independent trials of one rate, the bound is below the rate with
    chance at most 1 - `confidence`, whatever the rate is.

    Args:
        count: How often it happened, in 0..`trials`.
        trials: At least 1.
        confidence: One-sided, in (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.

    >>> round(rate_upper_bound(0, 10, confidence=0.95), 6) == round(1 - 0.05**0.1, 6)
    True
    """
    _check(count, trials)
    return float(rate_upper_bounds(trials, confidence)[count])


def rate_lower_bound(count: int, trials: int, *, confidence: float) -> float:
    """The smallest rate under which so many counts are not yet too rare; mirrors `rate_upper_bound`.

    Args:
        count: How often it happened, in 0..`trials`.
        trials: At least 1.
        confidence: One-sided, in (0, 1).

    Raises:
        ConfigError: An argument is out of range.
    """
    _check(count, trials)
    return 1.0 - float(rate_upper_bounds(trials, confidence)[trials - count])


@lru_cache(maxsize=256)
def rate_upper_bounds(trials: int, confidence: float) -> Floats:
    """`rate_upper_bound` for every count at once.

    Args:
        trials: At least 1.
        confidence: One-sided, in (0, 1).

    Returns:
        (trials + 1,) strictly increasing up to 1, read-only: entry k belongs to k counts.

    Raises:
        ConfigError: An argument is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"audit: confidence must be between 0 and 1, got {confidence}")
    if trials < 1:
        raise ConfigError(f"audit: a rate needs at least one trial, got {trials}")
    counts = np.arange(trials, dtype=np.float64)
    bounds = np.append(betaincinv(counts + 1.0, trials - counts, confidence), 1.0)
    bounds.setflags(write=False)
    return bounds


def _check(count: int, trials: int) -> None:
    if not 0 <= count <= trials:
        raise ConfigError(f"audit: a count must lie in 0..{trials}, got {count}")
