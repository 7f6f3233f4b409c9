"""The mechanism family, trade-off curve and score threshold that a plan declares."""

import numpy as np

from common.privacy.plan import PrivacyPlan
from simulations.attacks.canary.trial import AdversaryKind
from simulations.attacks.estimators.gaussian_dp import gaussian_trade_off
from simulations.attacks.estimators.pld_family import SubsampledGaussians, log_likelihood_ratios, trade_off_curve

_SIMULATED = 20_000
_FALSE_POSITIVE_RATE = 0.2


def family_of(plan: PrivacyPlan) -> SubsampledGaussians:
    """Return the plan's mechanism as a family over all noise levels."""
    return SubsampledGaussians(plan.sample_rate, plan.steps_per_round * plan.num_rounds)


def threshold_of(plan: PrivacyPlan, adversary: AdversaryKind) -> float | None:
    """Return the threshold of scores, from the declared mechanism alone.

    It holds for steps so short that no gradient changes its direction. Scores along the canary are then 0 without it
    and 1 with it in every step. With longer steps the noise itself changes the canary's effect, up to thirty times.

    Args:
        plan: The audited plan.
        adversary: What the adversary sees.

    Returns:
        The threshold; None if it must be chosen on half of the scores.
    """
    if adversary == "black-box":
        return None
    if adversary == "single-steps":
        return float(np.quantile(simulated_scores(plan, 1.0)[1], 1 - _FALSE_POSITIVE_RATE))
    if plan.sample_rate == 1.0:
        return 0.5
    return float(0.5 * plan.noise_multiplier / np.sqrt(plan.steps_per_round * plan.num_rounds))


def declared_curve(rates: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
    """Return the smallest false negative rates of any attack, shape (n,).

    Args:
        rates: (n,) false positive rates.
        plan: The declared plan.
    """
    if plan.sample_rate == 1.0:
        return gaussian_trade_off(rates, mu=declared_mu(plan))
    return trade_off_curve(rates, family_of(plan), noise_multiplier=plan.noise_multiplier)


def declared_mu(plan: PrivacyPlan) -> float:
    """Return the mu of Gaussian DP of a whole plan with full batches."""
    return float(np.sqrt(plan.steps_per_round * plan.num_rounds)) / plan.noise_multiplier


def simulated_scores(plan: PrivacyPlan, noise_factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores of the adversary `single-steps` from the declared mechanism.

    Args:
        plan: The declared plan.
        noise_factor: Actual noise over the declared noise.

    Returns:
        Scores with the canary and without it.
    """
    rng, steps = np.random.default_rng(2024), plan.steps_per_round * plan.num_rounds
    scores = []
    for inside in (True, False):
        joined = (rng.random((_SIMULATED, steps)) < plan.sample_rate) * float(inside)
        noise = plan.noise_multiplier * noise_factor * rng.standard_normal((_SIMULATED, steps))
        scores.append(
            log_likelihood_ratios(joined + noise, sample_rate=plan.sample_rate, noise_multiplier=plan.noise_multiplier)
        )
    return scores[0], scores[1]
