"""Upper bounds on an attacker's two error rates at one threshold.

The attacker says "the canary was in" for every score above a threshold. A threshold that
was fixed in advance is tested on all scores. A threshold that is chosen from scores is
tested on other scores: those with an even index choose it, those with an odd index count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats, rate_upper_bounds

Objective = Callable[[Floats, Floats], Floats]
# Below this confidence, Hoeffding's theorem does not cover the pooled count of `bound_mean_error`.
_LEAST_POOLED_CONFIDENCE = 0.75


@dataclass(frozen=True)
class BoundedRates:
    """Upper bounds on both error rates of an attack.

    Attributes:
        false_positive_rate: Upper bound on the chance that a score without the canary says "in".
        false_negative_rate: Upper bound on the chance that a score with it says "out".
        confidence: Of both bounds together; each bound alone has (1 + confidence) / 2.
        threshold: Scores above it say "in".
        num_in: Number of counted scores with the canary.
        num_out: Number of counted scores without it.
        num_choosing: Number of scores that chose the threshold; 0 if it was fixed in advance.
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
    """Upper bound on the mean of an attack's two error rates.

    Attributes:
        mean_error: Upper bound on (false positive rate + false negative rate) / 2.
        confidence: Of this bound.
        threshold: Scores above it say "in"; fixed in advance.
        num_each: Number of counted scores with the canary, and as many without it.
    """

    mean_error: float
    confidence: float
    threshold: float
    num_each: int


def gaussian_distance(false_positive_rate: Floats, false_negative_rate: Floats) -> Floats:
    """Return the distance between two unit Gaussians that show these error rates.

    Args:
        false_positive_rate: Any shape, in [0, 1].
        false_negative_rate: Same shape as `false_positive_rate`, in [0, 1].

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

    Guarantee: for independent, identically distributed scores, either bound is too low with
    chance at most 1 - `confidence`, also where the threshold is chosen here.

    Args:
        scores_in: (n,) scores of runs with the canary; higher means "in".
        scores_out: (m,) scores of runs without it.
        confidence: Joint confidence of both bounds, in (0, 1).
        threshold: Fixed before any score was seen; None chooses it on half of the scores.
        objective: Function of both rates' upper bounds that a chosen threshold maximizes.

    Raises:
        ConfigError: A score is missing or not finite, or `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"audit: confidence must be between 0 and 1, got {confidence}")
    inside, outside = _as_scores(scores_in, "in"), _as_scores(scores_out, "out")
    # Two bounds must hold together: each may fail with half of the remaining chance (union bound).
    each = (1.0 + confidence) / 2.0
    num_choosing = 0
    if threshold is None:
        # Scores that choose the threshold may not count, or the bounds would be too low.
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
    """Bound the mean of both error rates at a threshold fixed in advance.

    Guarantee: for independent scores the bound is too low with chance at most 1 - `confidence`.
    It is sharper than two bounds where the threshold is the midpoint. Where the two rates
    differ, the total of errors is not binomial. But at a confidence of 0.75 or more, a total
    this low is never likelier than under one common rate (Hoeffding).

    Args:
        scores_in: (n,) scores of runs with the canary; higher means "in".
        scores_out: (m,) scores of runs without it; the longer list is cut to the shorter one's length.
        confidence: In [0.75, 1).
        threshold: Fixed before any score was seen.

    Raises:
        ConfigError: A score is missing or not finite, or `confidence` is out of range.

    Source: Hoeffding 1956, doi:10.1214/aoms/1177728178, Theorem 4.
    """
    if not confidence >= _LEAST_POOLED_CONFIDENCE:
        raise ConfigError(f"audit: a pooled bound needs a confidence of at least 0.75, got {confidence}")
    inside, outside = _as_scores(scores_in, "in"), _as_scores(scores_out, "out")
    # With sides of different length the total would weigh one error rate more than the other.
    num_each = min(len(inside), len(outside))
    errors = np.count_nonzero(inside[:num_each] <= threshold) + np.count_nonzero(outside[:num_each] > threshold)
    bound = float(rate_upper_bounds(2 * num_each, confidence)[errors])
    return BoundedMeanError(bound, confidence, float(threshold), num_each)


def _as_scores(scores: npt.ArrayLike, side: str) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ConfigError(f"audit: too few scores of canaries that were {side}: give one number a run")
    # Leaving failed runs out would bias the error rates.
    if not np.isfinite(array).all():
        raise ConfigError(f"audit: scores of canaries that were {side} are not all finite: repeat the failed runs")
    return array


def _best_threshold(inside: Floats, outside: Floats, confidence: float, objective: Objective) -> float:
    """Return the score at which the objective is largest."""
    inside, outside = np.sort(inside), np.sort(outside)
    candidates = np.concatenate((inside, outside))
    false_negatives = np.searchsorted(inside, candidates, side="right")
    false_positives = len(outside) - np.searchsorted(outside, candidates, side="right")
    worth = objective(
        rate_upper_bounds(len(outside), confidence)[false_positives],
        rate_upper_bounds(len(inside), confidence)[false_negatives],
    )
    return float(candidates[np.argmax(worth)])
