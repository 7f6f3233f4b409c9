"""Lower bounds on mu of Gaussian mechanisms (mu-GDP) from error rates.

For lower bounds only. Gaussian DP can overstate or understate the privacy of subsampled
or composed mechanisms, so no figure of this module is a guarantee.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats
from simulations.attacks.estimators.error_rates import BoundedMeanError, BoundedRates

_LARGEST_EPSILON = 1e6


@dataclass(frozen=True)
class MuLowerBound:
    """Lower bound on the mu of a mechanism.

    Attributes:
        mu: The mechanism is not mu'-GDP for any smaller mu'; in standard deviations, 0 refutes nothing.
        errors: The bounded error rates that refute, with their confidence.
    """

    mu: float
    errors: BoundedRates | BoundedMeanError

    def epsilon(self, *, delta: float) -> float:
        """Return the lower bound as an epsilon at `delta`."""
        return epsilon_of_mu(self.mu, delta=delta)


def gaussian_trade_off(false_positive_rate: npt.ArrayLike, *, mu: float) -> Floats:
    """Return the smallest false negative rate that mu-GDP allows an attacker.

    Args:
        false_positive_rate: The attacker's, any shape, in [0, 1].
        mu: At least 0; sqrt(T) / s for T steps with noise multiplier s and every unit in each step.

    Returns:
        The same shape, in [0, 1].

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Definition 3.
    """
    return np.asarray(ndtr(-ndtri(np.asarray(false_positive_rate, dtype=np.float64)) - mu))


def epsilon_of_mu(mu: float, *, delta: float) -> float:
    """Return the epsilon of a mu-GDP mechanism at `delta`.

    Args:
        mu: Finite, at least 0.
        delta: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Corollary 1.

    >>> round(epsilon_of_mu(1.0, delta=1e-5), 3), epsilon_of_mu(0.0, delta=1e-5)
    (4.377, 0.0)
    """
    if not 0 <= mu < math.inf:
        raise ConfigError(f"audit: mu must be finite and at least 0, got {mu}")
    _check_delta(delta)
    if mu == 0 or _delta_of(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while _delta_of(high, mu) > delta:
        high *= 2
    return float(brentq(lambda epsilon: _delta_of(epsilon, mu) - delta, 0.0, high, xtol=1e-12))


def mu_of_epsilon(epsilon: float, *, delta: float) -> float:
    """Return the mu that has this epsilon at `delta`.

    Args:
        epsilon: At least 0, at most a million.
        delta: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.
    """
    if not 0 <= epsilon <= _LARGEST_EPSILON:
        raise ConfigError(f"audit: epsilon must lie in 0..{_LARGEST_EPSILON:.0f}, got {epsilon}")
    _check_delta(delta)
    high = 1.0
    while _delta_of(epsilon, high) <= delta:
        high *= 2
    return float(brentq(lambda mu: _delta_of(epsilon, mu) - delta, 1e-12, high, xtol=1e-13))


def mu_lower_bound(errors: BoundedRates | BoundedMeanError) -> MuLowerBound:
    """Return the largest mu that these error rates refute.

    Guarantee: where the rates' bounds hold and the mechanism is mu-GDP, the result is at most its mu.

    Args:
        errors: Upper bounds on both error rates, or on their mean.

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, equation 6; Nasr et al. 2023, arXiv:2302.07956.
    """
    if isinstance(errors, BoundedMeanError):
        mu = -2.0 * ndtri(errors.mean_error)
    else:
        mu = -ndtri(errors.false_positive_rate) - ndtri(errors.false_negative_rate)
    return MuLowerBound(max(0.0, float(mu)), errors)


def _delta_of(epsilon: float, mu: float) -> float:
    """Return the delta at `epsilon`, decreasing in epsilon and increasing in mu."""
    # The logarithm keeps exp(epsilon) from overflowing before it meets the tiny tail.
    return float(ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"audit: delta must be between 0 and 1, got {delta}")
