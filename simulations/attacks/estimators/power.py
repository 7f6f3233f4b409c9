"""Exact statistical power of an audit of a given size.

An alarm is a lower bound above the ledger's epsilon, that is, bounded error rates below
the declared trade-off. Error counts are binomial, so the chance of an alarm is a finite sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats, rate_upper_bounds

POWER = 0.95
_LEAST_FACTOR = 1 / 16
_PRECISION = 1e-3


@dataclass(frozen=True)
class Detectable:
    """Smallest violation that an audit detects with chance `power`.

    Attributes:
        noise_factor: Noise of at most this multiple of the declared noise is detected; 0 if
            not even a sixteenth is.
        power: The smallest chance of detection that counts.
        false_alarm: Chance of an alarm where nothing is wrong.
    """

    noise_factor: float
    power: float
    false_alarm: float


def alarm_probability(
    false_positive_rate: float,
    false_negative_rate: float,
    *,
    trade_off: Callable[[Floats], Floats],
    num_in: int,
    num_out: int,
    confidence: float,
) -> float:
    """Return the chance that two bounded rates refute a declared trade-off.

    Args:
        false_positive_rate: The attack's true rate at a threshold fixed in advance.
        false_negative_rate: The attack's true rate at the same threshold.
        trade_off: The declared curve, false positive rates -> smallest false negative rates.
        num_in: Number of counted scores with the canary.
        num_out: Number of counted scores without it.
        confidence: Joint confidence of both bounds, in (0, 1).

    Raises:
        ConfigError: A number of scores or the confidence is out of range.
    """
    each = (1.0 + confidence) / 2.0
    bounds_in, bounds_out = rate_upper_bounds(num_in, each), rate_upper_bounds(num_out, each)
    # For each count of false positives, so many counts of false negatives raise an alarm: 0, 1, 2 and so on.
    alarming = np.searchsorted(bounds_in, trade_off(bounds_out), side="left")
    chances = binom.pmf(np.arange(num_out + 1), num_out, false_positive_rate)
    return float(chances @ binom.cdf(alarming - 1, num_in, false_negative_rate))


def mean_alarm_probability(
    false_positive_rate: float, false_negative_rate: float, *, mu: float, num_each: int, confidence: float
) -> float:
    """Return the chance that a bounded mean error refutes a declared mu.

    Args:
        false_positive_rate: The attack's true rate at a threshold fixed in advance.
        false_negative_rate: The attack's true rate at the same threshold.
        mu: The declared value.
        num_each: Number of counted scores with the canary, and as many without it.
        confidence: Of the bound, in [0.75, 1).

    Raises:
        ConfigError: The number of scores or the confidence is out of range.
    """
    most_errors = int(np.searchsorted(rate_upper_bounds(2 * num_each, confidence), ndtr(-mu / 2), side="left")) - 1
    false_positives = np.arange(num_each + 1)
    chances = binom.pmf(false_positives, num_each, false_positive_rate)
    return float(chances @ binom.cdf(most_errors - false_positives, num_each, false_negative_rate))


def detectable(
    rates_at: Callable[[float], tuple[float, float]],
    alarm: Callable[[float, float], float],
    *,
    power: float = POWER,
) -> Detectable:
    """Return the largest noise factor that raises an alarm with chance `power`.

    Args:
        rates_at: Noise factor (1 without a fault) -> the attack's false positive and false
            negative rates, which both shrink with the factor.
        alarm: These rates -> chance of an alarm, for instance `alarm_probability`.
        power: The smallest chance of an alarm that counts as detection, in (0, 1).

    Returns:
        The factor to a thousandth, rounded down.

    Raises:
        ConfigError: `power` is out of range.
    """
    if not 0 < power < 1:
        raise ConfigError(f"audit: power must be between 0 and 1, got {power}")
    low, high = _LEAST_FACTOR, 1.0
    false_alarm = alarm(*rates_at(high))
    if alarm(*rates_at(low)) < power:
        return Detectable(0.0, power, false_alarm)
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if alarm(*rates_at(middle)) >= power else (low, middle)
    return Detectable(low, power, false_alarm)
