"""What the best attacks on Gaussian steps reach, in closed form: the measure of estimators and of their power."""

import math

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from simulations.attacks.estimators.gaussian_dp import gaussian_trade_off
from simulations.attacks.estimators.pld_family import SubsampledGaussians
from simulations.attacks.estimators.power import (
    POWER,
    Detectable,
    alarm_probability,
    detectable,
    mean_alarm_probability,
)


def detectable_gaussian(
    mu: float, *, num_in: int, num_out: int, confidence: float, power: float = POWER, pooled: bool = False
) -> Detectable:
    """The smallest violation found in Gaussian scores cut at the midpoint of what was declared.

    Scores are in units of the declared noise, so that a fault makes them narrower and
    leaves their distance `mu`.

    Args:
        mu: What is declared.
        num_in: Scores with the canary that are counted.
        num_out: Scores without it that are counted.
        confidence: Of the lower bound.
        power: In (0, 1).
        pooled: Whether the bound is `bound_mean_error`'s, not `bound_rates`'.

    Raises:
        ConfigError: An argument is out of range.

    >>> found = detectable_gaussian(2.0, num_in=500, num_out=500, confidence=0.9999, pooled=True)
    >>> round(found.noise_factor, 2)
    0.78
    """

    def rates_at(factor: float) -> tuple[float, float]:
        rate = float(ndtr(-mu / (2 * factor)))
        return rate, rate

    def alarm(false_positive_rate: float, false_negative_rate: float) -> float:
        rates = (false_positive_rate, false_negative_rate)
        if pooled:
            return mean_alarm_probability(*rates, mu=mu, num_each=min(num_in, num_out), confidence=confidence)
        return alarm_probability(
            *rates,
            trade_off=lambda rate: gaussian_trade_off(rate, mu=mu),
            num_in=num_in,
            num_out=num_out,
            confidence=confidence,
        )

    return detectable(rates_at, alarm, power=power)


def sum_score_rates(family: SubsampledGaussians, *, noise_multiplier: float, threshold: float) -> tuple[float, float]:
    """The exact error rates of an attacker who adds up the scores of all steps.

    Args:
        family: The mechanisms.
        noise_multiplier: Which of them; positive.
        threshold: Of the sum, in canary norms.

    Returns:
        False positive rate, false negative rate.
    """
    stddev = noise_multiplier * math.sqrt(family.steps)
    drawn = np.arange(family.steps + 1)
    chances = binom.pmf(drawn, family.steps, family.sample_rate)
    return float(ndtr(-threshold / stddev)), float(chances @ ndtr((threshold - drawn) / stddev))
