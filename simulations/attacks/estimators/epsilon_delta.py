"""What bounded error rates say about (epsilon, delta), for any mechanism at all."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats
from simulations.attacks.estimators.error_rates import BoundedRates


@dataclass(frozen=True)
class EpsilonLowerBound:
    """The mechanism is not (epsilon', `delta`)-private for any epsilon' below `epsilon`.

    Attributes:
        epsilon: 0 if nothing was refuted.
        delta: At which epsilon was asked for.
        rates: What it follows from, and with which confidence.
    """

    epsilon: float
    delta: float
    rates: BoundedRates


def epsilon_trade_off(false_positive_rate: npt.ArrayLike, *, epsilon: float, delta: float) -> Floats:
    """The least false negative rate that an (epsilon, delta)-private mechanism leaves to an attacker.

    Args:
        false_positive_rate: Any shape, in [0, 1].
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
    steep = np.nan_to_num(steep, nan=1.0 - delta, neginf=0.0)
    return np.asarray(np.maximum(0.0, np.maximum(steep, flat)))


def epsilon_lower_bound(rates: BoundedRates, *, delta: float) -> EpsilonLowerBound:
    """The largest epsilon that these rates refute, in whichever direction they refute more.

    Guarantee: where the rates hold, it is at most the true epsilon at `delta`; nothing is
    assumed about the mechanism. With n scores a side and 95 % it stays below log(n / 3):
    few scores show no large epsilon, however bad the mechanism is.

    Args:
        rates: Upper bounds on both error rates of one attack.
        delta: In [0, 1).

    Raises:
        ConfigError: `delta` is out of range.

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776; Nasr et al. 2021, arXiv:2101.04535.
    """
    if not 0 <= delta < 1:
        raise ConfigError(f"audit: delta must be at least 0 and below 1, got {delta}")
    ahead = _log_ratio(1.0 - delta - rates.false_negative_rate, rates.false_positive_rate)
    behind = _log_ratio(1.0 - delta - rates.false_positive_rate, rates.false_negative_rate)
    return EpsilonLowerBound(max(0.0, ahead, behind), delta, rates)


def _log_ratio(above: float, below: float) -> float:
    return float(np.log(above / below)) if above > 0 else 0.0
