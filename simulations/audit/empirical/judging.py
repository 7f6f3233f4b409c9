"""From scores of one audit to bounds, and to a verdict: every choice is made before a score is seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.privacy.accounting import spent_by
from common.privacy.plan import PrivacyPlan
from simulations.audit.empirical.trial import AdversaryKind
from simulations.audit.estimators.attack import BoundedRates, bound_mean_error, bound_rates
from simulations.audit.estimators.detectable import (
    POWER,
    Detectable,
    alarm_probability,
    detectable,
    detectable_gaussian,
)
from simulations.audit.estimators.epsilon_delta import epsilon_lower_bound
from simulations.audit.estimators.gaussian_dp import epsilon_of_mu, mu_lower_bound
from simulations.audit.estimators.pld_family import (
    NoiseUpperBound,
    SubsampledGaussians,
    log_likelihood_ratios,
    noise_upper_bound,
    sum_score_rates,
    trade_off_curve,
)
from simulations.audit.estimators.verdict import Judgement, judge

ADVERSARIES_IN_WORDS: Mapping[str, str] = {
    "final-model": "who sees the final model and knows all but the noise and the canary",
    "transcript": "who sees every update of the client and knows all but the noise and the canary",
    "single-steps": "who sees every noised step, more than any server, and knows all but the noise and the canary",
    "black-box": "who asks the final model about the canary, once",
}
# An accusation takes more certainty than a figure: one audit in ten thousand accuses where nothing is wrong.
ALARM = 1 - 1e-4
_SIMULATED = 20_000
_OUT_THAT_EXCEED = 0.2


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
        seen: The smallest violation that this audit could have seen; None if nobody knows.
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
    seen: Detectable | None

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
            "smallest_violation_seen": None if self.seen is None else vars(self.seen),
            "plan": self.plan.as_json(),
        }


def bounds_of(
    scores_in: np.ndarray, scores_out: np.ndarray, plan: PrivacyPlan, adversary: AdversaryKind, *, confidence: float
) -> Bounds:
    """Bound epsilon from below in three ways, and compare with the ledger's.

    Args:
        scores_in: (n,) float64 of trainings with the canary.
        scores_out: (m,) float64 of trainings without it.
        plan: The audited client's.
        adversary: Who made the scores.
        confidence: Of each bound, in [0.75, 1).

    Raises:
        ConfigError: There are too few scores, or one is not finite.
    """
    threshold = threshold_of(plan, adversary)
    upper = spent_by([plan.event()], delta=plan.delta).pld

    def found_at(level: float) -> tuple[BoundedRates, float | None, NoiseUpperBound | None]:
        rates = bound_rates(scores_in, scores_out, confidence=level, threshold=threshold)
        mu = _mu(scores_in, scores_out, rates, plan, fixed=threshold is not None)
        needed = mu is None or level == confidence
        return rates, mu, _family_bound(scores_in, scores_out, rates, plan, adversary) if needed else None

    def epsilon_of(mu: float | None, member: NoiseUpperBound | None) -> float:
        return epsilon_of_mu(mu, delta=plan.delta) if mu is not None else member.epsilon if member else 0.0

    rates, mu, member = found_at(confidence)
    assert member is not None  # noqa: S101 -- at this level it is always computed
    lower = epsilon_of(mu, member)
    seen = smallest_seen(plan, adversary, len(scores_in), len(scores_out), ALARM)
    judgement = judge(
        lower_bound=lower,
        upper_bound=upper,
        confidence=confidence,
        adversary=ADVERSARIES_IN_WORDS[adversary],
        seen=seen,
        alarm_bound=epsilon_of(*found_at(max(ALARM, confidence))[1:]),
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


def _mu(
    scores_in: np.ndarray, scores_out: np.ndarray, rates: BoundedRates, plan: PrivacyPlan, *, fixed: bool
) -> float | None:
    """The largest refuted mu, where the mechanism is a Gaussian one."""
    if plan.sample_rate < 1:
        return None
    if not fixed:
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
    if adversary == "single-steps":
        each = (1 + rates.confidence) / 2
        cuts = (rates.threshold, None)
        every = [bound_rates(scores_in, scores_out, confidence=each, threshold=cut) for cut in cuts]
    family = family_of(plan)
    found = [
        noise_upper_bound(one, family, declared_noise_multiplier=plan.noise_multiplier, delta=plan.delta)
        for one in every
    ]
    return max(found, key=lambda bound: bound.epsilon)


def family_of(plan: PrivacyPlan) -> SubsampledGaussians:
    """The plan's mechanism, whatever its noise."""
    return SubsampledGaussians(plan.sample_rate, plan.steps_per_round * plan.num_rounds)


def threshold_of(plan: PrivacyPlan, adversary: AdversaryKind) -> float | None:
    """Where to cut, from the declared mechanism alone; None if half of the scores must tell.

    Scores along a canary's direction are 0 without it, and 1 if it had been in every step.
    """
    steps = plan.steps_per_round * plan.num_rounds
    if adversary == "black-box":
        return None
    if adversary == "single-steps":
        return float(np.quantile(_simulated(plan, 1.0)[1], 1 - _OUT_THAT_EXCEED))
    if plan.sample_rate == 1.0:
        return 0.5
    return float(0.5 * plan.noise_multiplier / np.sqrt(steps))


def smallest_seen(
    plan: PrivacyPlan, adversary: AdversaryKind, num_in: int, num_out: int, confidence: float
) -> Detectable | None:
    """The smallest fault of the noise that an audit of this size finds, if its canary is as good as can be."""
    steps, threshold = plan.steps_per_round * plan.num_rounds, threshold_of(plan, adversary)
    if threshold is None:
        return None
    if plan.sample_rate == 1.0:
        mu = float(np.sqrt(steps)) / plan.noise_multiplier
        return detectable_gaussian(mu, num_in=num_in, num_out=num_out, confidence=confidence, pooled=True)
    family = family_of(plan)
    each = (1 + confidence) / 2 if adversary == "single-steps" else confidence

    def rates_at(factor: float) -> tuple[float, float]:
        if adversary != "single-steps":
            return sum_score_rates(family, noise_multiplier=plan.noise_multiplier * factor, threshold=threshold * steps)
        inside, outside = _simulated(plan, factor)
        return float((outside > threshold).mean()), float((inside <= threshold).mean())

    def alarm(false_positive_rate: float, false_negative_rate: float) -> float:
        return alarm_probability(
            false_positive_rate,
            false_negative_rate,
            trade_off=lambda rate: trade_off_curve(rate, family, noise_multiplier=plan.noise_multiplier),
            num_in=num_in,
            num_out=num_out,
            confidence=each,
        )

    if adversary == "single-steps":  # beyond some fault the likelihoods mislead: look from small faults to large ones
        factors = np.arange(0.98, 0.3, -0.02)
        found = next((float(f) for f in factors if alarm(*rates_at(float(f))) >= POWER), 0.0)
        return Detectable(found, POWER, alarm(*rates_at(1.0)))
    return detectable(rates_at, alarm)


def _simulated(plan: PrivacyPlan, noise_factor: float) -> tuple[np.ndarray, np.ndarray]:
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
