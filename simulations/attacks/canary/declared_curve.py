"""What a plan declares, as attacks need it: its family, its trade-off curve, where to cut scores."""

import numpy as np

from common.privacy.plan import PrivacyPlan
from simulations.attacks.canary.trial import AdversaryKind
from simulations.attacks.estimators.gaussian_dp import gaussian_trade_off
from simulations.attacks.estimators.pld_family import SubsampledGaussians, log_likelihood_ratios, trade_off_curve

_SIMULATED = 20_000
_OUT_THAT_EXCEED = 0.2


def family_of(plan: PrivacyPlan) -> SubsampledGaussians:
    """The plan's mechanism, whatever its noise."""
    return SubsampledGaussians(plan.sample_rate, plan.steps_per_round * plan.num_rounds)


def threshold_of(plan: PrivacyPlan, adversary: AdversaryKind) -> float | None:
    """Where to cut, from the declared mechanism alone; None if half of the scores must tell.

    It is for steps so short that no gradient turns: scores along the canary are then 0 without it, and 1 if it
    had been in every step. Elsewhere noise itself moves what the canary does, by as much as thirty times.
    """
    if adversary == "black-box":
        return None
    if adversary == "single-steps":
        return float(np.quantile(simulated_scores(plan, 1.0)[1], 1 - _OUT_THAT_EXCEED))
    if plan.sample_rate == 1.0:
        return 0.5
    return float(0.5 * plan.noise_multiplier / np.sqrt(plan.steps_per_round * plan.num_rounds))


def declared_curve(rates: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
    """(n,) least false negative rates that a plan leaves to any attack.

    Args:
        rates: (n,) false positive rates.
        plan: What was declared.
    """
    if plan.sample_rate == 1.0:
        return gaussian_trade_off(rates, mu=declared_mu(plan))
    return trade_off_curve(rates, family_of(plan), noise_multiplier=plan.noise_multiplier)


def declared_mu(plan: PrivacyPlan) -> float:
    """How far apart two unit Gaussians are that a whole plan of full batches makes of a canary."""
    return float(np.sqrt(plan.steps_per_round * plan.num_rounds)) / plan.noise_multiplier


def simulated_scores(plan: PrivacyPlan, noise_factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of an adversary of single steps, as the declared mechanism would give them: with the canary, without."""
    rng, steps = np.random.default_rng(2024), plan.steps_per_round * plan.num_rounds
    found = []
    for inside in (True, False):
        joined = (rng.random((_SIMULATED, steps)) < plan.sample_rate) * float(inside)
        noise = plan.noise_multiplier * noise_factor * rng.standard_normal((_SIMULATED, steps))
        found.append(
            log_likelihood_ratios(joined + noise, sample_rate=plan.sample_rate, noise_multiplier=plan.noise_multiplier)
        )
    return found[0], found[1]
