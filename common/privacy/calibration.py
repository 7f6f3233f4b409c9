"""Calibration of noise to a target epsilon by the accountant that checks it later."""

import math
from collections.abc import Callable
from dataclasses import replace

from common.errors import ConfigError
from common.privacy.accounting import DISCRETIZATION, FIGURES, pld_epsilon
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.noise_error import CURRENT_SAMPLER, draws_of

_COARSE = 1e-3
# Relative: epsilon ends at most this far below the target, or the noise at most this far above the least noise.
_TOLERANCE = 1e-3
_MAX_NOISE = 1e4
_LONGEST_STEP = 4.0
_MAX_FACTOR = 100.0
# The sampler's exact noise parameter hides less than half a count below this.
LEAST_COUNTS_NOISE = 0.5
# A row of the closing matrix holds about a tenth of the units that a pair holds, as for ten classes. So the same noise
# makes ten times the relative error. The number is fixed: another one would change the plans of runs.
_CLOSING_WEIGHT = 10.0
_CALIBRATION_WEIGHT = 3.0
History = tuple[Event, ...]


@FIGURES.in_memory(1024)
def calibrate(
    sample_rate: float,
    steps: int,
    target_epsilon: float,
    delta: float,
    beside: tuple[CountsEvent, ...] = (),
    noise_shares: int = 0,
) -> float:
    """Return the least noise multiplier whose epsilon meets the target.

    Guarantee: the official epsilon of all `steps` of the whole run at this noise, on the grid that every report and
    every check uses, is at most `target_epsilon`. That includes the events `beside` the steps on the same units. The
    noise is the least one to 0.1 %. With `noise_shares` it is that of all accounted shares together.

    Raises:
        ConfigError: Not even a noise multiplier of 10,000 meets the target.
    """

    def ideal(noise: float) -> History:
        return (DpSgdEvent(sample_rate, noise, steps), *beside)

    def charged(noise: float) -> History:
        draws = draws_of(CURRENT_SAMPLER)
        return (DpSgdEvent(sample_rate, noise, steps, 1, CURRENT_SAMPLER, draws, noise_shares), *beside)

    def compute() -> float:
        guess = max(0.3, sample_rate * math.sqrt(steps) * 4 / target_epsilon + 0.2)
        noise = least_noise(ideal, target_epsilon, delta, guess=guess)
        # The sampler's charge would move the last digits of the noise, and so the name of a plan that an earlier
        # version made. So the noise of before stays wherever it meets the target with the charge too.
        if pld_epsilon(charged(noise), delta, DISCRETIZATION) <= target_epsilon:
            return noise
        return least_noise(charged, target_epsilon, delta, guess=noise)

    # Without events beside the steps the key is that of earlier versions, whose figures stay valid.
    key = (sample_rate, steps, target_epsilon, delta, CURRENT_SAMPLER, *beside, *([noise_shares] * bool(noise_shares)))
    return FIGURES.get_or_compute("noise", key, compute)


def least_noise(
    history: Callable[[float], History], target: float, delta: float, *, guess: float, most: float = _MAX_NOISE
) -> float:
    """Return the least noise at which a history's epsilon meets the target.

    The noise is exact to 0.1 %, and epsilon does not exceed the target. More noise must make a history cost less. Log
    epsilon is nearly linear in log noise, so secant steps from `guess` on a coarse grid come close. Then the fine grid
    decides. `most` is the largest noise that is tried.

    Raises:
        ConfigError: Not even the largest noise meets the target.
    """

    def excess(log_noise: float, grid: float) -> float:
        epsilon = pld_epsilon(history(math.exp(log_noise)), delta, grid)
        return math.log(max(epsilon, 1e-9) / target)

    # The coarse grid gives the larger epsilon, so the slow fine grid is asked only if the coarse one fails.
    if excess(math.log(most), _COARSE) > 0 and excess(math.log(most), DISCRETIZATION) > 0:
        raise ConfigError(
            f"privacy.target-epsilon={target} cannot be met with so many steps: ask for fewer rounds or epochs, or a "
            "larger target"
        )
    highest = math.log(most)
    start, slope = _approach(lambda x: excess(x, _COARSE), math.log(guess), highest)
    return math.exp(_settle(lambda x: excess(x, DISCRETIZATION), start, slope, highest))


def _approach(excess: Callable[[float], float], x: float, highest: float) -> tuple[float, float]:
    """Return a point with excess near zero and the slope at that point.

    If there is none below `highest`, return where the search began.
    """
    guess, slope, value = x, -1.0, excess(x)
    for _ in range(30):
        if abs(value) < _TOLERANCE / 2:
            break
        step = min(1.0, max(-1.0, -value / slope))
        # No noise meets a small target on a coarse grid, and the search would go on for ever.
        if step > 0 and x + step > highest:
            return guess, -1.0
        next_value = excess(x + step)
        slope = min(-0.2, (next_value - value) / step)
        x, value = x + step, next_value
    return x, slope


def _settle(excess: Callable[[float], float], x: float, slope: float, highest: float) -> float:
    """Return a point with excess in (-`_TOLERANCE`, 0].

    If there is none, return the upper end of a bisection to `_TOLERANCE`, where the excess is not positive. The excess
    at `highest` must not be positive.
    """
    low, high = -math.inf, highest
    while high - low > _TOLERANCE:
        value = excess(x)
        low, high = (max(low, x), high) if value > 0 else (low, min(high, x))
        if -_TOLERANCE < value <= 0:
            return x
        # A long step down would come to so little noise that epsilon takes gigabytes.
        following = max(x - (value + _TOLERANCE / 4) / slope, x - _LONGEST_STEP)
        width = 4 * _TOLERANCE
        if not low < following < high:
            following = (low + high) / 2 if math.isfinite(low) else (x + width if value > 0 else x - width)
        x = following
    return high


def counts_noise(events: tuple[CountsEvent, ...], *, target_epsilon: float, delta: float) -> float:
    """Return the factor by which the noise of counts must grow.

    Guarantee: it is at least 1, and with the noise multiplied by it all counts of the same units together cost at most
    `target_epsilon`.

    Raises:
        ConfigError: Not even 100 times the noise meets the target.
    """
    key = (events, target_epsilon, delta)
    return FIGURES.get_or_compute("counts", key, lambda: _factor(events, target_epsilon, delta))


def _factor(events: tuple[CountsEvent, ...], target: float, delta: float) -> float:
    def history(factor: float) -> History:
        return tuple(replace(event, noise_stddev=factor * event.noise_stddev) for event in events)

    if pld_epsilon(history(1.0), delta, DISCRETIZATION) <= target:
        return 1.0
    return max(1.0, least_noise(history, target, delta, guess=2.0, most=_MAX_FACTOR))


def histogram_noise(matrix: float, num_classes: int) -> tuple[float, float]:
    """Return the noise of score and of calibration histograms.

    It follows from that of the closing matrix, and none is below `LEAST_COUNTS_NOISE`. The weights of
    `split_counts_noise` are 10 for scores, whose right class holds as many units as a row of the matrix, and 3 for
    calibration, whose bins hold about a third. A unit changes a count in each of `num_classes` score histograms, so
    under zCDP these cost num_classes / noise^2.
    """
    scores, calibration = math.cbrt(num_classes), math.cbrt(_CLOSING_WEIGHT / _CALIBRATION_WEIGHT)
    return max(LEAST_COUNTS_NOISE, scores * matrix), max(LEAST_COUNTS_NOISE, calibration * matrix)


def histogram_events(scores: float, calibration: float, num_classes: int) -> tuple[CountsEvent, CountsEvent]:
    """Return the events of one release of score and of calibration histograms."""
    return CountsEvent(scores, 1, l2_sensitivity=math.sqrt(num_classes)), CountsEvent(calibration, 1)


def subgroup_noise(matrix: float, num_subgroups: int) -> float:
    """Return the noise of counts by subgroup.

    It follows from that of the closing matrix and is not below `LEAST_COUNTS_NOISE`. The weight of
    `split_counts_noise` is the number of subgroups, each of which holds so small a part of the units of a pair.
    """
    return max(LEAST_COUNTS_NOISE, math.cbrt(_CLOSING_WEIGHT / num_subgroups) * matrix)


def split_counts_noise(
    num_rounds: int, *, target_epsilon: float, delta: float, num_classes: int | None = None, num_subgroups: int = 0
) -> tuple[float, float]:
    """Return the noise of a round's pair and of the closing matrix.

    Guarantee: the pairs of `num_rounds` rounds and one matrix together cost at most `target_epsilon`, and neither noise
    is below `LEAST_COUNTS_NOISE`. With `num_classes` that includes histograms under the noise of `histogram_noise`, and
    with `num_subgroups` counts by subgroup under that of `subgroup_noise`. Of all such noises these have the least sum
    of relative errors, the pair's noise plus ten times the matrix's. Under zCDP the pairs cost num_rounds / pair^2 and
    the matrix 1 / matrix^2, so the least sum for a given cost has pair / matrix = (10 num_rounds)^(1/3).

    Raises:
        ConfigError: Not even twice the expected noise meets the target.
    """
    ratio = math.cbrt(_CLOSING_WEIGHT * num_rounds)

    def noises(matrix: float) -> tuple[float, float]:
        # Where the target allows less than the least noise, the other release gets what is left of the target.
        return max(LEAST_COUNTS_NOISE, ratio * matrix), max(LEAST_COUNTS_NOISE, matrix)

    def history(matrix: float) -> History:
        pair, closing = noises(matrix)
        events = [CountsEvent(pair, num_rounds), CountsEvent(closing, 1)]
        if num_classes is not None:
            events += histogram_events(*histogram_noise(closing, num_classes), num_classes)
        if num_subgroups:
            events.append(CountsEvent(subgroup_noise(closing, num_subgroups), 1))
        return tuple(events)

    def compute() -> float:
        if pld_epsilon(history(LEAST_COUNTS_NOISE / ratio), delta, _COARSE) <= target_epsilon:
            return LEAST_COUNTS_NOISE / ratio
        # Invert the zCDP bound epsilon = rho + 2 sqrt(rho ln(1 / delta)), which is a little too large.
        rho = (math.sqrt(target_epsilon - math.log(delta)) - math.sqrt(-math.log(delta))) ** 2
        more = math.cbrt(num_subgroups / _CLOSING_WEIGHT) ** 2
        if num_classes is not None:
            more += math.cbrt(num_classes) + math.cbrt(_CALIBRATION_WEIGHT / _CLOSING_WEIGHT) ** 2
        guess = math.sqrt((num_rounds / ratio**2 + 1 + more) / (2 * rho))
        return least_noise(history, target_epsilon, delta, guess=guess, most=2 * guess)

    # Without histograms and subgroups the key is that of earlier versions, whose figures stay valid.
    key = (
        *(num_rounds, target_epsilon, delta),
        *(() if num_classes is None else (num_classes,)),
        *(("subgroups", num_subgroups) if num_subgroups else ()),
    )
    return noises(FIGURES.get_or_compute("counts split", key, compute))
