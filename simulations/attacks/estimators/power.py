"""How small a fault an audit of a given size would have found: computed, not simulated.

An alarm is a lower bound above what the ledger declares, that is: bounded error rates
below the declared trade-off. Error counts are binomial, so its chance is a finite sum.
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
    """The smallest violation that an audit finds with chance `power`.

    Attributes:
        noise_factor: Noise of so many times what was declared, or less, is found; 0 if
            not even a sixteenth is.
        power: With at least this chance.
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
    """Chance that two bounded rates refute a declared trade-off, at a threshold fixed beforehand.

    Args:
        false_positive_rate: Of the attack, truly.
        false_negative_rate: Of the attack, truly.
        trade_off: What is declared: false positive rates -> least false negative rates.
        num_in: Scores with the canary that are counted.
        num_out: Scores without it that are counted.
        confidence: Of both bounds together, in (0, 1).

    Raises:
        ConfigError: A number of scores or the confidence is out of range.
    """
    each = (1.0 + confidence) / 2.0
    bounds_in, bounds_out = rate_upper_bounds(num_in, each), rate_upper_bounds(num_out, each)
    few_enough = np.searchsorted(bounds_in, trade_off(bounds_out), side="left")
    chances = binom.pmf(np.arange(num_out + 1), num_out, false_positive_rate)
    return float(chances @ binom.cdf(few_enough - 1, num_in, false_negative_rate))


def mean_alarm_probability(
    false_positive_rate: float, false_negative_rate: float, *, mu: float, num_each: int, confidence: float
) -> float:
    """Chance that a bounded mean error refutes mu, at a threshold fixed beforehand.

    Args:
        false_positive_rate: Of the attack, truly.
        false_negative_rate: Of the attack, truly.
        mu: What is declared.
        num_each: Scores that are counted, with the canary and without.
        confidence: Of the bound, in [0.75, 1).

    Raises:
        ConfigError: The number of scores or the confidence is out of range.
    """
    few_enough = int(np.searchsorted(rate_upper_bounds(2 * num_each, confidence), ndtr(-mu / 2), side="left")) - 1
    false_positives = np.arange(num_each + 1)
    chances = binom.pmf(false_positives, num_each, false_positive_rate)
    return float(chances @ binom.cdf(few_enough - false_positives, num_each, false_negative_rate))


def detectable(
    rates_at: Callable[[float], tuple[float, float]],
    alarm: Callable[[float, float], float],
    *,
    power: float = POWER,
) -> Detectable:
    """The largest noise factor that raises an alarm often enough.

    Args:
        rates_at: Noise factor (1 is no fault) -> the attack's false positive and false
            negative rate; both shrink with the factor.
        alarm: These rates -> chance of an alarm, for instance `alarm_probability`.
        power: Often enough; in (0, 1).

    Returns:
        Found to a thousandth, rounded down.

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
