"""From scores of one audit to bounds, and to a verdict: every choice is made before a score is seen."""

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
# An accusation takes more certainty than a figure: one audit in ten thousand accuses where nothing is wrong.
ALARM = 1 - 1e-4


@dataclass(frozen=True)
class Bounds:
    """What one audit found.

    Attributes:
        plan: The audited client's.
        adversary: What the adversary saw.
        threshold: Scores above it say "in".
        fixed: Whether the threshold was fixed in advance.
        clopper_pearson: Epsilon, for any mechanism at all.
        gaussian: Epsilon by GDP mu; None where batches are sampled, whose mechanism is no Gaussian one.
        mu: The same as mu.
        family: Epsilon by the family of the plan's own mechanism.
        noise_factor: The noise is at most so many times what was declared, by that family.
        upper: The ledger's epsilon.
        judgement: The verdict, by `gaussian` where there is one and by `family` elsewhere.
        seen: The smallest violation that this audit could have seen.
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
        """The bound that the verdict is by."""
        return self.family if self.gaussian is None else self.gaussian

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
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
    """Bound epsilon from below in three ways, and compare with the ledger's.

    Args:
        scores_in: (n,) float64 of trainings with the canary.
        scores_out: (m,) float64 of trainings without it.
        plan: The audited client's.
        adversary: Who made the scores.
        threshold: Where to cut, fixed before any score was seen; None chooses it on half of them.
        confidence: Of each bound, in [0.75, 1).

    Raises:
        ConfigError: There are too few scores, or one is not finite.
    """
    upper = spent_by([plan.event()], delta=plan.delta).pld

    def found_at(level: float) -> tuple[BoundedRates, float | None, NoiseUpperBound | None]:
        rates = bound_rates(scores_in, scores_out, confidence=level, threshold=threshold)
        mu = _mu(scores_in, scores_out, rates, plan)
        needed = mu is None or level == confidence
        return rates, mu, _family_bound(scores_in, scores_out, rates, plan, adversary) if needed else None

    def epsilon_of(mu: float | None, member: NoiseUpperBound | None) -> float:
        return epsilon_of_mu(mu, delta=plan.delta) if mu is not None else member.epsilon if member else 0.0

    rates, mu, member = found_at(confidence)
    assert member is not None  # noqa: S101 -- at this level it is always computed
    lower = epsilon_of(mu, member)
    accusing, mu_beyond_doubt, member_beyond_doubt = found_at(max(ALARM, confidence))
    seen = smallest_seen(scores_in, scores_out, plan, adversary, accusing)
    judgement = judge(
        lower_bound=lower,
        upper_bound=upper,
        confidence=confidence,
        adversary=ADVERSARIES_IN_WORDS[adversary],
        seen=seen,
        alarm_bound=epsilon_of(mu_beyond_doubt, member_beyond_doubt),
    )
    return Bounds(
        plan=plan,
        adversary=adversary,
        threshold=rates.threshold,
        fixed=threshold is not None,
        clopper_pearson=epsilon_lower_bound(rates, delta=plan.delta).epsilon,
        gaussian=None if mu is None else lower,
        mu=mu,
        family=member.epsilon,
        noise_factor=member.noise_factor,
        upper=upper,
        judgement=judgement,
        seen=seen,
    )


def _mu(scores_in: np.ndarray, scores_out: np.ndarray, rates: BoundedRates, plan: PrivacyPlan) -> float | None:
    """The largest refuted mu, where the mechanism is a Gaussian one."""
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
    """By the rates at the fixed threshold; likelihoods of single steps are cut where the scores say, too.

    They assume the declared noise, and a much smaller one would move them below the fixed threshold.
    """
    every = [rates]
    if adversary == "single-steps" and not rates.num_choosing:
        each = (1 + rates.confidence) / 2
        cuts = (rates.threshold, None)
        every = [bound_rates(scores_in, scores_out, confidence=each, threshold=cut) for cut in cuts]
    family = family_of(plan)
    found = [
        noise_upper_bound(one, family, declared_noise_multiplier=plan.noise_multiplier, delta=plan.delta)
        for one in every
    ]
    return max(found, key=lambda bound: bound.epsilon)
