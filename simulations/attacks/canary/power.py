"""The smallest fault that an audit could have detected, from its own scores."""

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
    """Return the smallest fault of the noise that this attack could have detected.

    Weaker noise is simulated by narrowing the scores.

    Args:
        scores_in: (n,) float64, scores with the canary.
        scores_out: (m,) float64, scores without it.
        plan: The declared plan.
        adversary: What the adversary saw.
        rates: Error rates at the alarm's confidence, with their threshold and numbers of scores.
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
            # Likelihoods are tested at two thresholds.
            confidence=(1 + rates.confidence) / 2 if likelihoods else rates.confidence,
        )

    def chance(factor: float) -> float:
        inside, outside = simulated_scores(plan, factor) if likelihoods else _narrowed(scores_in, scores_out, factor)
        cut = rates.threshold if fixed else bound_rates(inside, outside, confidence=rates.confidence).threshold
        return alarm(_share(outside > cut), _share(inside <= cut))

    # From small faults to large ones: beyond some fault, likelihoods under the declared noise mislead.
    factor_seen = next((factor for factor in _FACTORS if chance(factor) >= POWER), 0.0)
    return Detectable(factor_seen, POWER, chance(1.0))


def _narrowed(scores_in: np.ndarray, scores_out: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores as weaker noise would give them.

    Sampled batches add a spread to the scores with the canary, which stays.
    """
    noise, spread = float(scores_out.var()), float(scores_in.var())
    inside = np.sqrt((noise * factor**2 + max(0.0, spread - noise)) / max(spread, _LEAST_SPREAD))
    return tuple(
        scores.mean() + width * (scores - scores.mean())
        for scores, width in ((scores_in, min(1.0, inside)), (scores_out, factor))
    )


def _share(hits: np.ndarray) -> float:
    """Return a rate that is never 0.

    Half a hit and one trial are added.
    """
    return float((hits.sum() + 0.5) / (len(hits) + 1))
