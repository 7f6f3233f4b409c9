"""What bounded error rates say about the noise of Poisson-sampled Gaussian steps.

Such mechanisms form a family, one for each noise multiplier. Rates that are impossible
under a member refute it and all that are noisier, so the effective noise is less. Both
directions count: the trade-off without the canary is not the one with it.
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

# Rates bounded from a million runs are above exp(-14): slopes beyond these refute nothing more.
_SLOPES = np.linspace(0.0, 25.0, 2501)
_MOST_FACTOR = 16.0
# Curves of little noise take seconds each; a verdict needs no more than this.
_LEAST_FACTOR = 0.25
_SEARCH_STEP = 1.25
_SEARCH_PRECISION = 1e-3


@dataclass(frozen=True)
class SubsampledGaussians:
    """Mechanisms that differ in their noise alone.

    Attributes:
        sample_rate: Chance that a unit joins a step's batch, in (0, 1].
        steps: How many steps, at least 1.
        discretization: Width of the privacy loss grid. A coarser one is faster and, as
            losses are rounded up, refutes less; epsilon is read at the ledger's own.
    """

    sample_rate: float
    steps: int
    discretization: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.sample_rate <= 1 and self.steps >= 1 and self.discretization > 0):
            raise ConfigError(f"audit: no such mechanisms: {self}; sample rate in (0, 1], at least one step")


@dataclass(frozen=True)
class NoiseUpperBound:
    """The mechanism has less effective noise than `noise_multiplier`.

    Attributes:
        noise_multiplier: The least that is refuted; infinity if nothing was.
        declared_noise_multiplier: What the ledger says.
        epsilon: Lower bound on epsilon: the family's own at `noise_multiplier`.
        delta: At which epsilon was asked for.
        rates: What it follows from, and with which confidence.
    """

    noise_multiplier: float
    declared_noise_multiplier: float
    epsilon: float
    delta: float
    rates: BoundedRates

    @property
    def noise_factor(self) -> float:
        """The effective noise is at most so many times what was declared."""
        return self.noise_multiplier / self.declared_noise_multiplier


def trade_off_curve(
    false_positive_rate: npt.ArrayLike, family: SubsampledGaussians, *, noise_multiplier: float
) -> Floats:
    """The least false negative rate that one member leaves to an attacker.

    Guarantee: never above the true curve. A false positive is a run without the canary
    that is taken for one with it.

    Args:
        false_positive_rate: (n,), in [0, 1].
        family: The mechanisms.
        noise_multiplier: Which of them; positive.

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
    """The least noise multiplier that these rates refute.

    Guarantee: where the rates' bounds hold, the true noise multiplier is smaller, so the
    epsilon found is at most the ledger's epsilon of the true one. Looked for between a
    quarter and 16 times the declared one, to a thousandth, rounded to the safe side.

    Args:
        rates: Upper bounds on both error rates of one attack.
        family: The mechanisms, as declared but for the noise.
        declared_noise_multiplier: Where the search starts; positive.
        delta: For the epsilon; in (0, 1).

    Raises:
        ConfigError: The declared noise is not positive.

    Source: Nasr et al. 2023, arXiv:2302.07956 (auditing by the mechanism's own curve).
    """
    if not 0 < declared_noise_multiplier < math.inf:
        raise ConfigError(f"audit: the declared noise must be finite and positive, got {declared_noise_multiplier}")
    found = declared_noise_multiplier * _least_refuted(rates, family, declared_noise_multiplier)
    epsilon = 0.0
    if math.isfinite(found):
        event = DpSgdEvent(family.sample_rate, found, family.steps)
        epsilon = pld_epsilon((event,), delta, DISCRETIZATION)
    return NoiseUpperBound(found, declared_noise_multiplier, epsilon, delta, rates)


def log_likelihood_ratios(step_scores: npt.ArrayLike, *, sample_rate: float, noise_multiplier: float) -> Floats:
    """Turn what an attacker saw of each step into the one score that separates best.

    The sum over steps is the best score only where every step includes every unit;
    elsewhere it gives away much of what an attacker of single steps can see. A good
    threshold to fix in advance is what a fifth of simulated runs without the canary exceed.

    Args:
        step_scores: (n, steps): the step's noised sum along the canary, less what the
            others contribute, over the canary's norm; 1 plus noise if the canary was in the batch.
        sample_rate: In (0, 1].
        noise_multiplier: As declared; positive.

    Returns:
        (n,) log likelihoods of "in" over "out".

    Source: Neyman and Pearson 1933, doi:10.1098/rsta.1933.0009.
    """
    scores = np.asarray(step_scores, dtype=np.float64)
    drawn = np.log(sample_rate) + (2.0 * scores - 1.0) / (2.0 * noise_multiplier**2)
    skipped = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    return np.asarray(np.logaddexp(skipped, drawn).sum(axis=1))


@lru_cache(maxsize=256)
def _divergences(family: SubsampledGaussians, noise_multiplier: float) -> tuple[Floats, Floats]:
    """Hockey-stick divergences at `_SLOPES`, never too small: with over without the canary, and the reverse."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole = pld.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=family.sample_rate,
        neighboring_relation=pld.NeighborRel.REPLACE_SPECIAL,
        value_discretization_interval=family.discretization,
    ).self_compose(family.steps)
    # Only the larger of both directions is public.
    sides = (whole._pmf_remove, whole._pmf_add)
    present, absent = (np.asarray(side.get_delta_for_epsilon(_SLOPES)) for side in sides)
    return present, absent


def _least_refuted(rates: BoundedRates, family: SubsampledGaussians, declared: float) -> float:
    """As a factor of the declared noise; infinity if none within reach is refuted."""

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
    return high
