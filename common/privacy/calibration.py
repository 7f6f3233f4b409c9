"""The least noise that keeps a promise: found by the accountant that will check it."""

import math
from collections.abc import Callable
from functools import lru_cache

from common.errors import ConfigError
from common.privacy.accounting import DISCRETIZATION, pld_epsilon
from common.privacy.accounting_cache import cached_figure
from common.privacy.events import CountsEvent, DpSgdEvent, Event

_COARSE = 1e-3
_CLOSE = 1e-3  # relative: epsilon ends at most so far below the target, or noise so far above the least
_MOST_NOISE = 1e4
_MOST_FACTOR = 100.0
History = tuple[Event, ...]


@lru_cache(maxsize=1024)
def calibrate(sample_rate: float, steps: int, target_epsilon: float, delta: float) -> float:
    """The least noise multiplier, to 0.1 %, whose epsilon does not exceed the target.

    Guarantee: the official epsilon of so many steps at this noise, on the grid that
    every report and every check uses, is at most `target_epsilon`.

    Args:
        sample_rate: In (0, 1].
        steps: Over the whole run.
        target_epsilon: Positive.
        delta: In (0, 1).

    Raises:
        ConfigError: Not even a noise multiplier of 10,000 meets the target.
    """

    def history(noise: float) -> History:
        return (DpSgdEvent(sample_rate, noise, steps),)

    guess = max(0.3, sample_rate * math.sqrt(steps) * 4 / target_epsilon + 0.2)
    key = (sample_rate, steps, target_epsilon, delta)
    return cached_figure("noise", key, lambda: least_noise(history, target_epsilon, delta, guess=guess))


def least_noise(
    history: Callable[[float], History], target: float, delta: float, *, guess: float, most: float = _MOST_NOISE
) -> float:
    """The least noise, to 0.1 %, at which a history's epsilon does not exceed the target.

    Log epsilon is nearly a straight line over log noise: secant steps on a coarse
    grid come close, and the fine grid decides.

    Args:
        history: Noise -> events, more noise costing less.
        target: Wanted epsilon.
        delta: In (0, 1).
        guess: Where to start.
        most: More noise than this is not tried.

    Raises:
        ConfigError: Not even the most noise meets the target.
    """

    def excess(log_noise: float, grid: float) -> float:
        epsilon = pld_epsilon(history(math.exp(log_noise)), delta, grid)
        return math.log(max(epsilon, 1e-9) / target)

    if excess(math.log(most), _COARSE) > 0 and excess(math.log(most), DISCRETIZATION) > 0:
        raise ConfigError(
            f"privacy.target-epsilon={target} cannot be met with so many steps: ask for fewer rounds or epochs, or a "
            "larger target"
        )
    start, slope = _near(lambda x: excess(x, _COARSE), math.log(guess))
    return math.exp(_settle(lambda x: excess(x, DISCRETIZATION), start, slope))


def _near(excess: Callable[[float], float], x: float) -> tuple[float, float]:
    """Where the excess is about zero, and its slope there."""
    slope, value = -1.0, excess(x)
    for _ in range(30):
        if abs(value) < _CLOSE / 2:
            break
        step = min(1.0, max(-1.0, -value / slope))
        following = excess(x + step)
        slope = min(-0.2, (following - value) / step)
        x, value = x + step, following
    return x, slope


def _settle(excess: Callable[[float], float], x: float, slope: float) -> float:
    """A point with excess in (-`_CLOSE`, 0], or the least that a bisection to `_CLOSE` finds."""
    low, high = -math.inf, math.inf
    while high - low > _CLOSE:
        value = excess(x)
        low, high = (max(low, x), high) if value > 0 else (low, min(high, x))
        if -_CLOSE < value <= 0:
            return x
        towards = x - (value + _CLOSE / 4) / slope
        width = 4 * _CLOSE
        if not low < towards < high:
            towards = (low + high) / 2 if math.isfinite(high - low) else (x + width if value > 0 else x - width)
        x = towards
    return high


def counts_noise(events: tuple[CountsEvent, ...], *, target_epsilon: float, delta: float) -> float:
    """What to multiply the noise of counts by, at least 1, so that they meet the target together.

    Args:
        events: Counts over the same units at the noise that was asked for.
        target_epsilon: Positive.
        delta: In (0, 1).

    Raises:
        ConfigError: No noise meets the target.
    """
    key = (events, target_epsilon, delta)
    return cached_figure("counts", key, lambda: _factor(events, target_epsilon, delta))


def _factor(events: tuple[CountsEvent, ...], target: float, delta: float) -> float:
    def history(factor: float) -> History:
        return tuple(CountsEvent(factor * event.noise_stddev, event.releases) for event in events)

    if pld_epsilon(history(1.0), delta, DISCRETIZATION) <= target:
        return 1.0
    return max(1.0, least_noise(history, target, delta, guess=2.0, most=_MOST_FACTOR))
