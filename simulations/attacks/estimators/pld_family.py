"""Upper bounds on the noise of Poisson-sampled Gaussian steps, from error rates.

These mechanisms form a family with one member for each noise multiplier. Error rates that
are impossible under a member refute it and every noisier one, so the effective noise is
less. Both directions count, as the trade-offs with and without the canary differ.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from common.privacy.accounting import DISCRETIZATION, pld_epsilon
from common.privacy.events import DpSgdEvent
from simulations.attacks.estimators.binomial import Floats
from simulations.attacks.estimators.error_rates import BoundedRates

# Rates bounded from a million runs are above exp(-14), so larger slopes refute nothing more.
_SLOPES = np.linspace(0.0, 25.0, 2501)
_MOST_FACTOR = 16.0
# Curves with little noise take seconds each, and no verdict needs a smaller factor.
_LEAST_FACTOR = 0.25
_SEARCH_STEP = 1.25
_SEARCH_PRECISION = 1e-3


@dataclass(frozen=True)
class SubsampledGaussians:
    """Family of mechanisms that differ in their noise alone.

    Attributes:
        sample_rate: Chance that a unit joins a step's batch, in (0, 1].
        steps: Number of steps, at least 1.
        discretization: Width of the privacy loss grid. A coarser grid is faster and refutes
            less, as losses are rounded up. Epsilon is computed on the ledger's grid instead.
    """

    sample_rate: float
    steps: int
    discretization: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.sample_rate <= 1 and self.steps >= 1 and self.discretization > 0):
            raise ConfigError(f"audit: {self}: use a sample rate in (0, 1], steps >= 1 and a discretization > 0")


@dataclass(frozen=True)
class NoiseUpperBound:
    """Upper bound on a mechanism's effective noise.

    Attributes:
        noise_multiplier: The smallest that is refuted, above the effective one; infinity if none is.
        declared_noise_multiplier: The ledger's value.
        epsilon: Lower bound on epsilon, that of the family at `noise_multiplier`.
        delta: The delta that `epsilon` belongs to.
        rates: The bounded error rates that refute, with their confidence.
    """

    noise_multiplier: float
    declared_noise_multiplier: float
    epsilon: float
    delta: float
    rates: BoundedRates

    @property
    def noise_factor(self) -> float:
        """Upper bound on the effective noise as a multiple of the declared noise."""
        return self.noise_multiplier / self.declared_noise_multiplier


def trade_off_curve(
    false_positive_rate: npt.ArrayLike, family: SubsampledGaussians, *, noise_multiplier: float
) -> Floats:
    """Return the smallest false negative rate that one member allows an attacker.

    Guarantee: never above the true curve. A false positive is a run without the canary
    that is taken for a run with it.

    Args:
        false_positive_rate: The attacker's, (n,), in [0, 1].
        family: The mechanisms.
        noise_multiplier: Of the member; positive.

    Returns:
        (n,), in [0, 1].

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Proposition 2.12 (from hockey-stick
    divergences to trade-offs); Zhu et al. 2022, arXiv:2106.08567 (two directions).
    """
    rate = np.asarray(false_positive_rate, dtype=np.float64)[:, None]
    present, absent = _divergences(family, noise_multiplier)
    steep = (1.0 - present - np.exp(_SLOPES) * rate).max(axis=1)
    flat = (np.exp(-_SLOPES) * (1.0 - absent - rate)).max(axis=1)
    return np.asarray(np.maximum(0.0, np.maximum(steep, flat)))


def noise_upper_bound(
    rates: BoundedRates, family: SubsampledGaussians, *, declared_noise_multiplier: float, delta: float
) -> NoiseUpperBound:
    """Return the smallest noise multiplier that these error rates refute.

    Guarantee: where the rates' bounds hold, the true noise multiplier is smaller, so the
    returned epsilon is at most the ledger's epsilon of the true one. The search covers a
    quarter to 16 times the declared value, to a thousandth, rounded to the safe side.

    Args:
        rates: Upper bounds on both error rates of one attack.
        family: The mechanisms, with the declared sample rate and steps.
        declared_noise_multiplier: The ledger's value, where the search starts; positive.
        delta: For the epsilon; in (0, 1).

    Raises:
        ConfigError: The declared noise is not positive.

    Source: Nasr et al. 2023, arXiv:2302.07956 (auditing by the mechanism's own curve).
    """
    if not 0 < declared_noise_multiplier < math.inf:
        raise ConfigError(f"audit: the declared noise must be finite and positive, got {declared_noise_multiplier}")
    noise_multiplier = declared_noise_multiplier * _least_refuted(rates, family, declared_noise_multiplier)
    epsilon = 0.0
    if math.isfinite(noise_multiplier):
        event = DpSgdEvent(family.sample_rate, noise_multiplier, family.steps)
        epsilon = pld_epsilon((event,), delta, DISCRETIZATION)
    return NoiseUpperBound(noise_multiplier, declared_noise_multiplier, epsilon, delta, rates)


def log_likelihood_ratios(step_scores: npt.ArrayLike, *, sample_rate: float, noise_multiplier: float) -> Floats:
    """Combine an attacker's scores of single steps into the best score of a run.

    The plain sum over steps is the best score only where every step includes every unit.
    With sampling, it loses much of what single steps show. A good threshold to fix in
    advance is the score that a fifth of simulated runs without the canary exceed.

    Args:
        step_scores: (n, steps), the step's noised sum along the canary, without the others' part,
            divided by the canary's norm: 1 plus noise if the canary was in the batch, else noise.
        sample_rate: Chance that a unit joins a step's batch, in (0, 1].
        noise_multiplier: The ledger's value; positive.

    Returns:
        (n,) log likelihood ratios of "in" to "out".

    Source: Neyman and Pearson 1933, doi:10.1098/rsta.1933.0009.
    """
    scores = np.asarray(step_scores, dtype=np.float64)
    drawn = np.log(sample_rate) + (2.0 * scores - 1.0) / (2.0 * noise_multiplier**2)
    skipped = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    return np.asarray(np.logaddexp(skipped, drawn).sum(axis=1))


@lru_cache(maxsize=256)
def _divergences(family: SubsampledGaussians, noise_multiplier: float) -> tuple[Floats, Floats]:
    """Return both directions' hockey-stick divergences at `_SLOPES`, never too small."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = pld.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=family.sample_rate,
        neighboring_relation=pld.NeighborRel.REPLACE_SPECIAL,
        value_discretization_interval=family.discretization,
    ).self_compose(family.steps)
    # The library's public method returns only the larger of both directions.
    sides = (whole._pmf_remove, whole._pmf_add)
    present, absent = (np.asarray(side.get_delta_for_epsilon(_SLOPES)) for side in sides)
    return present, absent


def _least_refuted(rates: BoundedRates, family: SubsampledGaussians, declared: float) -> float:
    """Return the smallest refuted factor of the declared noise (infinity if none)."""

    def refuted(factor: float) -> bool:
        least = trade_off_curve([rates.false_positive_rate], family, noise_multiplier=declared * factor)[0]
        return bool(rates.false_negative_rate < least)

    high = 1.0
    while not refuted(high):
        high *= _SEARCH_STEP
        if high > _MOST_FACTOR:
            return math.inf
    low = high / _SEARCH_STEP
    while refuted(low):
        high, low = low, low / _SEARCH_STEP
        if low < _LEAST_FACTOR:
            return high
    while high / low > 1 + _SEARCH_PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    # `high` itself was refuted, and `low` was not: only `high` is an upper bound.
    return high
