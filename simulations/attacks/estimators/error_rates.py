"""An attacker's two error rates: counted at one threshold, and bounded from above.

The attacker says "the canary was in" for every score above a threshold. A threshold
that was fixed in advance may be tried on every score. One that is read off scores is
judged on other scores: those of even index choose, those of odd index count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats, rate_upper_bounds

Objective = Callable[[Floats, Floats], Floats]
# Below it a pooled bound would not be one; see `bound_mean_error`.
_LEAST_POOLED_CONFIDENCE = 0.75


@dataclass(frozen=True)
class BoundedRates:
    """What both error rates of an attack are at most, at once with the stated confidence.

    Attributes:
        false_positive_rate: Upper bound on the chance that a score without the canary says "in".
        false_negative_rate: Upper bound on the chance that a score with it says "out".
        confidence: That both hold; each holds at (1 + confidence) / 2.
        threshold: Scores above it say "in".
        num_in: Scores with the canary that were counted.
        num_out: Scores without it that were counted.
        num_choosing: Scores spent on choosing the threshold; 0 if it was fixed in advance.
    """

    false_positive_rate: float
    false_negative_rate: float
    confidence: float
    threshold: float
    num_in: int
    num_out: int
    num_choosing: int


@dataclass(frozen=True)
class BoundedMeanError:
    """What the mean of an attack's two error rates is at most.

    Attributes:
        mean_error: Upper bound on (false positive rate + false negative rate) / 2.
        confidence: That it holds.
        threshold: Scores above it say "in"; fixed in advance.
        num_each: Scores that were counted, with the canary and without.
    """

    mean_error: float
    confidence: float
    threshold: float
    num_each: int


def gaussian_distance(false_positive_rate: Floats, false_negative_rate: Floats) -> Floats:
    """How far apart two unit Gaussians lie that show these error rates; the usual thing to maximise.

    Args:
        false_positive_rate: Any shape, in [0, 1].
        false_negative_rate: The same shape, in [0, 1].

    Returns:
        The same shape; minus infinity where a rate is 1.
    """
    return np.asarray(-ndtri(false_positive_rate) - ndtri(false_negative_rate))


def bound_rates(
    scores_in: npt.ArrayLike,
    scores_out: npt.ArrayLike,
    *,
    confidence: float,
    threshold: float | None = None,
    objective: Objective = gaussian_distance,
) -> BoundedRates:
    """Bound both error rates of the attack that compares scores with a threshold.

    Guarantee: over independent, equally distributed scores, one of the bounds is too
    low with chance at most 1 - `confidence`, however the threshold came about: if it
    is chosen here, no score that chooses is counted.

    Args:
        scores_in: (n,) scores of runs with the canary; higher means "in".
        scores_out: (m,) scores of runs without it.
        confidence: In (0, 1); the rest is shared equally between both rates.
        threshold: Fixed before any score was seen; None chooses it on half of the scores.
        objective: What a chosen threshold maximises, from the rates' upper bounds.

    Raises:
        ConfigError: A score is missing or not finite, or `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"audit: confidence must be between 0 and 1, got {confidence}")
    inside, outside = _as_scores(scores_in, "in"), _as_scores(scores_out, "out")
    each = (1.0 + confidence) / 2.0
    num_choosing = 0
    if threshold is None:
        threshold = _best_threshold(inside[::2], outside[::2], each, objective)
        num_choosing = len(inside[::2]) + len(outside[::2])
        inside, outside = _as_scores(inside[1::2], "in"), _as_scores(outside[1::2], "out")
    return BoundedRates(
        float(rate_upper_bounds(len(outside), each)[np.count_nonzero(outside > threshold)]),
        float(rate_upper_bounds(len(inside), each)[np.count_nonzero(inside <= threshold)]),
        confidence,
        float(threshold),
        len(inside),
        len(outside),
        num_choosing,
    )


def bound_mean_error(
    scores_in: npt.ArrayLike, scores_out: npt.ArrayLike, *, confidence: float, threshold: float
) -> BoundedMeanError:
    """Bound the mean of both error rates; sharper than two bounds where the threshold is the midpoint.

    Guarantee: over independent scores the bound is too low with chance at most
    1 - `confidence`. The longer list is cut to the length of the shorter. All errors
    together are no binomial count where both rates differ, but so few of them are
    never likelier than under one common rate (Hoeffding), which needs a confidence of
    at least 0.75.

    Args:
        scores_in: (n,) scores of runs with the canary; higher means "in".
        scores_out: (m,) scores of runs without it.
        confidence: In [0.75, 1).
        threshold: Fixed before any score was seen.

    Raises:
        ConfigError: A score is missing or not finite, or `confidence` is out of range.

    Source: Hoeffding 1956, doi:10.1214/aoms/1177728178, Theorem 4.
    """
    if not confidence >= _LEAST_POOLED_CONFIDENCE:
        raise ConfigError(f"audit: a pooled bound needs a confidence of at least 0.75, got {confidence}")
    inside, outside = _as_scores(scores_in, "in"), _as_scores(scores_out, "out")
    num_each = min(len(inside), len(outside))
    errors = np.count_nonzero(inside[:num_each] <= threshold) + np.count_nonzero(outside[:num_each] > threshold)
    bound = float(rate_upper_bounds(2 * num_each, confidence)[errors])
    return BoundedMeanError(bound, confidence, float(threshold), num_each)


def _as_scores(scores: npt.ArrayLike, side: str) -> Floats:
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise ConfigError(f"audit: too few scores of canaries that were {side}: give one number a run")
    if not np.isfinite(found).all():
        raise ConfigError(f"audit: scores of canaries that were {side} are not all finite: leave no run out, mend it")
    return found


def _best_threshold(inside: Floats, outside: Floats, confidence: float, objective: Objective) -> float:
    """The one score among all at which the objective is largest."""
    inside, outside = np.sort(inside), np.sort(outside)
    candidates = np.concatenate((inside, outside))
    false_negatives = np.searchsorted(inside, candidates, side="right")
    false_positives = len(outside) - np.searchsorted(outside, candidates, side="right")
    worth = objective(
        rate_upper_bounds(len(outside), confidence)[false_positives],
        rate_upper_bounds(len(inside), confidence)[false_negatives],
    )
    return float(candidates[np.argmax(worth)])
