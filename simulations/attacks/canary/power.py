"""How small a fault an audit would have found, judged by the very scores that its attack made."""

import numpy as np

from common.privacy.plan import PrivacyPlan
from simulations.attacks.canary.declared_curve import declared_curve, declared_mu, simulated_scores
from simulations.attacks.canary.trial import AdversaryKind
from simulations.attacks.estimators.error_rates import BoundedRates, bound_rates
from simulations.attacks.estimators.power import POWER, Detectable, alarm_probability, mean_alarm_probability

_FACTORS = np.arange(0.98, 0.05, -0.02).round(2).tolist()
_LEAST_SPREAD = 1e-300


def smallest_seen(
    scores_in: np.ndarray, scores_out: np.ndarray, plan: PrivacyPlan, adversary: AdversaryKind, rates: BoundedRates
) -> Detectable:
    """The smallest fault of the noise that this very attack would have found: less noise narrows its scores.

    Args:
        scores_in: (n,) float64 of trainings with the canary.
        scores_out: (m,) float64 of trainings without it.
        plan: What was declared.
        adversary: Who made the scores.
        rates: Bounded at the alarm's confidence; where they were cut and how many were counted.
    """
    fixed = not rates.num_choosing
    likelihoods = fixed and adversary == "single-steps"

    def alarm(false_positive_rate: float, false_negative_rate: float) -> float:
        if fixed and plan.sample_rate == 1.0:
            return mean_alarm_probability(
                false_positive_rate,
                false_negative_rate,
                mu=declared_mu(plan),
                num_each=min(rates.num_in, rates.num_out),
                confidence=rates.confidence,
            )
        return alarm_probability(
            false_positive_rate,
            false_negative_rate,
            trade_off=lambda rate: declared_curve(rate, plan),
            num_in=rates.num_in,
            num_out=rates.num_out,
            confidence=(1 + rates.confidence) / 2 if likelihoods else rates.confidence,  # they are cut twice
        )

    def chance(factor: float) -> float:
        inside, outside = simulated_scores(plan, factor) if likelihoods else _narrowed(scores_in, scores_out, factor)
        cut = rates.threshold if fixed else bound_rates(inside, outside, confidence=rates.confidence).threshold
        return alarm(_share(outside > cut), _share(inside <= cut))

    # From small faults to large ones: beyond some fault, likelihoods under the declared noise mislead.
    found = next((factor for factor in _FACTORS if chance(factor) >= POWER), 0.0)
    return Detectable(found, POWER, chance(1.0))


def _narrowed(scores_in: np.ndarray, scores_out: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The same attack under less noise; what sampled batches add to the spread of its scores stays."""
    noise, spread = float(scores_out.var()), float(scores_in.var())
    inside = np.sqrt((noise * factor**2 + max(0.0, spread - noise)) / max(spread, _LEAST_SPREAD))
    return tuple(
        scores.mean() + width * (scores - scores.mean())
        for scores, width in ((scores_in, min(1.0, inside)), (scores_out, factor))
    )


def _share(hits: np.ndarray) -> float:
    """A rate that is never said to be none: half a hit more, of one trial more."""
    return float((hits.sum() + 0.5) / (len(hits) + 1))
