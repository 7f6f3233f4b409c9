"""Bounds and verdict of an audit, by choices made before any score is seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.privacy.accounting import spent_by
from common.privacy.plan import PrivacyPlan
from simulations.attacks.canary.declared_curve import family_of
from simulations.attacks.canary.power import smallest_seen
from simulations.attacks.canary.trial import AdversaryKind
from simulations.attacks.estimators.epsilon_delta import epsilon_lower_bound
from simulations.attacks.estimators.error_rates import BoundedRates, bound_mean_error, bound_rates
from simulations.attacks.estimators.gaussian_dp import epsilon_of_mu, mu_lower_bound
from simulations.attacks.estimators.pld_family import NoiseUpperBound, noise_upper_bound
from simulations.attacks.estimators.power import Detectable
from simulations.attacks.estimators.verdict import Judgement, judge

ADVERSARIES_IN_WORDS: Mapping[str, str] = {
    "final-model": "who sees the final model and knows all but the noise and the canary",
    "transcript": "who sees every update of the client and knows all but the noise and the canary",
    "single-steps": "who sees every noised step, more than any server, and knows all but the noise and the canary",
    "black-box": "who asks the final model about the canary, once",
}
# A verdict "violated" needs more certainty than a bound: one correct run in ten thousand may be accused.
ALARM = 1 - 1e-4


@dataclass(frozen=True)
class Bounds:
    """Bounds of one audit next to the ledger's upper bound.

    Attributes:
        plan: Plan of the audited client.
        adversary: What the adversary saw.
        threshold: A score above it is a guess of "in".
        fixed: Whether the threshold was fixed in advance.
        clopper_pearson: Epsilon of any mechanism.
        gaussian: Epsilon by Gaussian DP; None with sampled batches, because that mechanism is not Gaussian.
        mu: Mu of the Gaussian bound.
        family: Epsilon by the family of the plan's own mechanism.
        noise_factor: Upper bound of the actual noise over the declared noise, by that family.
        upper: Epsilon of the ledger.
        judgement: Verdict by `gaussian`, or by `family` if there is none.
        seen: Smallest violation that this audit could have detected.
    """

    plan: PrivacyPlan
    adversary: AdversaryKind
    threshold: float
    fixed: bool
    clopper_pearson: float
    gaussian: float | None
    mu: float | None
    family: float
    noise_factor: float
    upper: float
    judgement: Judgement
    seen: Detectable

    @property
    def lower(self) -> float:
        """The bound that decides the verdict."""
        return self.family if self.gaussian is None else self.gaussian

    def as_json(self) -> dict[str, Any]:
        """Return the bounds as plain values."""
        return {
            "verdict": str(self.judgement.verdict),
            "sentence": self.judgement.sentence,
            "adversary": self.adversary,
            "epsilon_lower_bound": self.lower,
            "epsilon_upper_bound_of_the_ledger": self.upper,
            "delta": self.plan.delta,
            "bounds": {
                "clopper_pearson": {"epsilon": self.clopper_pearson},
                "gaussian_dp": None if self.gaussian is None else {"epsilon": self.gaussian, "mu": self.mu},
                "pld_family": {"epsilon": self.family, "noise_is_at_most_times_declared": self.noise_factor},
            },
            "threshold": {"value": self.threshold, "fixed_in_advance": self.fixed},
            "smallest_violation_seen": vars(self.seen),
            "plan": self.plan.as_json(),
        }


def bounds_of(
    scores_in: np.ndarray,
    scores_out: np.ndarray,
    plan: PrivacyPlan,
    adversary: AdversaryKind,
    *,
    threshold: float | None,
    confidence: float,
) -> Bounds:
    """Compute three lower bounds of epsilon and compare them with the ledger's.

    Args:
        scores_in: (n,) float64, scores with the canary.
        scores_out: (m,) float64, scores without it.
        plan: Plan of the audited client.
        adversary: What the adversary saw.
        threshold: Threshold that was fixed before any score was seen; None chooses it on half of the scores.
        confidence: Confidence of each bound, in [0.75, 1).

    Raises:
        ConfigError: There are too few scores, or a score is not finite.
    """
    upper = spent_by(plan.training_events(), delta=plan.delta).pld
    rates = bound_rates(scores_in, scores_out, confidence=confidence, threshold=threshold)
    mu, family = _mu(scores_in, scores_out, rates, plan), _family_bound(scores_in, scores_out, rates, plan, adversary)
    lower = family.epsilon if mu is None else epsilon_of_mu(mu, delta=plan.delta)
    certain = bound_rates(scores_in, scores_out, confidence=max(ALARM, confidence), threshold=threshold)
    certain_mu = _mu(scores_in, scores_out, certain, plan)
    if certain_mu is None:
        alarm_bound = _family_bound(scores_in, scores_out, certain, plan, adversary).epsilon
    else:
        alarm_bound = epsilon_of_mu(certain_mu, delta=plan.delta)
    seen = smallest_seen(scores_in, scores_out, plan, adversary, certain)
    judgement = judge(
        lower_bound=lower,
        upper_bound=upper,
        confidence=confidence,
        adversary=ADVERSARIES_IN_WORDS[adversary],
        seen=seen,
        alarm_bound=alarm_bound,
    )
    return Bounds(
        plan=plan,
        adversary=adversary,
        threshold=rates.threshold,
        fixed=threshold is not None,
        clopper_pearson=epsilon_lower_bound(rates, delta=plan.delta).epsilon,
        gaussian=None if mu is None else lower,
        mu=mu,
        family=family.epsilon,
        noise_factor=family.noise_factor,
        upper=upper,
        judgement=judgement,
        seen=seen,
    )


def _mu(scores_in: np.ndarray, scores_out: np.ndarray, rates: BoundedRates, plan: PrivacyPlan) -> float | None:
    """Return the lower bound of mu or None if the mechanism is not Gaussian."""
    if plan.sample_rate < 1:
        return None
    if rates.num_choosing:
        return mu_lower_bound(rates).mu
    return mu_lower_bound(
        bound_mean_error(scores_in, scores_out, confidence=rates.confidence, threshold=rates.threshold)
    ).mu


def _family_bound(
    scores_in: np.ndarray, scores_out: np.ndarray, rates: BoundedRates, plan: PrivacyPlan, adversary: AdversaryKind
) -> NoiseUpperBound:
    """Return the bound by the family of the plan's own mechanism.

    Likelihoods of single steps are tested at a second threshold, chosen on the scores. They assume the declared noise,
    and much weaker noise would move all of them below the fixed threshold.
    """
    every = [rates]
    if adversary == "single-steps" and not rates.num_choosing:
        # Two bounds hold together with the confidence of one.
        each = (1 + rates.confidence) / 2
        cuts = (rates.threshold, None)
        every = [bound_rates(scores_in, scores_out, confidence=each, threshold=cut) for cut in cuts]
    family = family_of(plan)
    bounds = [
        noise_upper_bound(each_rates, family, declared_noise_multiplier=plan.noise_multiplier, delta=plan.delta)
        for each_rates in every
    ]
    return max(bounds, key=lambda bound: bound.epsilon)
