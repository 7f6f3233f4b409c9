"""What bounded error rates say about mu, if the mechanism is a Gaussian one (mu-GDP).

For lower bounds only. Gaussian DP approximates subsampled or composed mechanisms from
below as often as from above, so no figure of this module is ever a guarantee.
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
    """The mechanism is not mu'-GDP for any mu' below `mu`.

    Attributes:
        mu: Distance of the two Gaussians in standard deviations; 0 if nothing was refuted.
        errors: What it follows from, and with which confidence.
    """

    mu: float
    errors: BoundedRates | BoundedMeanError

    def epsilon(self, *, delta: float) -> float:
        """The lower bound as an epsilon at `delta`."""
        return epsilon_of_mu(self.mu, delta=delta)


def gaussian_trade_off(false_positive_rate: npt.ArrayLike, *, mu: float) -> Floats:
    """The least false negative rate that a mu-GDP mechanism leaves to an attacker.

    Args:
        false_positive_rate: Any shape, in [0, 1].
        mu: At least 0; of T steps with noise multiplier s and every unit in each: sqrt(T) / s.

    Returns:
        The same shape, in [0, 1].

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Definition 3.
    """
    return np.asarray(ndtr(-ndtri(np.asarray(false_positive_rate, dtype=np.float64)) - mu))


def epsilon_of_mu(mu: float, *, delta: float) -> float:
    """The epsilon of a mu-GDP mechanism at delta, in closed form.

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
    most = 1.0
    while _delta_of(most, mu) > delta:
        most *= 2
    return float(brentq(lambda epsilon: _delta_of(epsilon, mu) - delta, 0.0, most, xtol=1e-12))


def mu_of_epsilon(epsilon: float, *, delta: float) -> float:
    """The mu whose epsilon at delta this is; the inverse of `epsilon_of_mu`.

    Args:
        epsilon: At least 0, at most a million.
        delta: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.
    """
    if not 0 <= epsilon <= _LARGEST_EPSILON:
        raise ConfigError(f"audit: epsilon must lie in 0..{_LARGEST_EPSILON:.0f}, got {epsilon}")
    _check_delta(delta)
    most = 1.0
    while _delta_of(epsilon, most) <= delta:
        most *= 2
    return float(brentq(lambda mu: _delta_of(epsilon, mu) - delta, 1e-12, most, xtol=1e-13))


def mu_lower_bound(errors: BoundedRates | BoundedMeanError) -> MuLowerBound:
    """The largest mu that these errors refute.

    Guarantee: where the errors' bounds hold and the mechanism is mu-GDP, it is at most mu.

    Args:
        errors: Upper bounds on both error rates, or on their mean.

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, equation 6; Nasr et al. 2023, arXiv:2302.07956.
    """
    if isinstance(errors, BoundedMeanError):
        found = -2.0 * ndtri(errors.mean_error)
    else:
        found = -ndtri(errors.false_positive_rate) - ndtri(errors.false_negative_rate)
    return MuLowerBound(max(0.0, float(found)), errors)


def _delta_of(epsilon: float, mu: float) -> float:
    """Falls in epsilon, grows in mu."""
    return float(ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"audit: delta must be between 0 and 1, got {delta}")
