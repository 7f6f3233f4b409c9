"""Lower bounds on epsilon of any mechanism from bounded error rates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats
from simulations.attacks.estimators.error_rates import BoundedRates


@dataclass(frozen=True)
class EpsilonLowerBound:
    """Lower bound on a mechanism's epsilon at one delta.

    Attributes:
        epsilon: The mechanism is not (epsilon', `delta`)-private for any smaller epsilon'; 0 refutes nothing.
        delta: The delta that `epsilon` belongs to.
        rates: The bounded error rates that refute, with their confidence.
    """

    epsilon: float
    delta: float
    rates: BoundedRates


def epsilon_trade_off(false_positive_rate: npt.ArrayLike, *, epsilon: float, delta: float) -> Floats:
    """Return the smallest false negative rate that (epsilon, delta)-privacy allows an attacker.

    Args:
        false_positive_rate: The attacker's, any shape, in [0, 1].
        epsilon: At least 0.
        delta: In [0, 1].

    Returns:
        The same shape, in [0, 1].

    Source: Wasserman and Zhou 2010, arXiv:0811.2501, Theorem 2.4.
    """
    rate = np.asarray(false_positive_rate, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        steep = 1.0 - delta - np.exp(epsilon) * rate
    flat = np.exp(-epsilon) * (1.0 - delta - rate)
    # A huge epsilon overflows to infinity, and infinity times a rate of 0 is not a number.
    steep = np.nan_to_num(steep, nan=1.0 - delta, neginf=0.0)
    return np.asarray(np.maximum(0.0, np.maximum(steep, flat)))


def epsilon_lower_bound(rates: BoundedRates, *, delta: float) -> EpsilonLowerBound:
    """Return the largest epsilon that these error rates refute.

    Guarantee: where the rates' bounds hold, the result is at most the true epsilon at `delta`,
    for any mechanism. With n scores a side and 95 % confidence it stays below log(n / 3):
    few scores cannot show a large epsilon, however bad the mechanism is.

    Args:
        rates: Upper bounds on both error rates of one attack.
        delta: In [0, 1).

    Raises:
        ConfigError: `delta` is out of range.

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776; Nasr et al. 2021, arXiv:2101.04535.
    """
    if not 0 <= delta < 1:
        raise ConfigError(f"audit: delta must be at least 0 and below 1, got {delta}")
    # Privacy limits both directions, so each may refute alone. The bounds hold together: no confidence is lost.
    with_canary = _log_ratio(1.0 - delta - rates.false_negative_rate, rates.false_positive_rate)
    without_canary = _log_ratio(1.0 - delta - rates.false_positive_rate, rates.false_negative_rate)
    return EpsilonLowerBound(max(0.0, with_canary, without_canary), delta, rates)


def _log_ratio(above: float, below: float) -> float:
    return float(np.log(above / below)) if above > 0 else 0.0
