"""ROC curves with confidence intervals and the limits that epsilon sets."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from simulations.attacks.estimators.binomial import rate_lower_bound, rate_upper_bound
from simulations.attacks.estimators.epsilon_delta import epsilon_trade_off

CONFIDENCE = 0.95
# An excess over what epsilon allows is an accusation: it wants more certainty than a figure does.
_ACCUSING = 0.9999
LEAST_FALSE_ALARMS = 10


@dataclass(frozen=True)
class Roc:
    """Error rates of every threshold on a statistic.

    Attributes:
        false_alarms: (k,) int64, others above the threshold; from 0 to all.
        hits: (k,) int64, members above the same threshold.
    """

    false_alarms: np.ndarray
    hits: np.ndarray

    @property
    def num_members(self) -> int:
        """Number of members."""
        return int(self.hits[-1])

    @property
    def num_others(self) -> int:
        """Number of non-members."""
        return int(self.false_alarms[-1])

    @property
    def fpr(self) -> np.ndarray:
        """(k,) false-positive rates."""
        return np.asarray(self.false_alarms / max(1, self.num_others))

    @property
    def tpr(self) -> np.ndarray:
        """(k,) true-positive rates."""
        return np.asarray(self.hits / max(1, self.num_members))


@dataclass(frozen=True)
class Rate:
    """True-positive rate at a false-positive rate.

    Attributes:
        fpr: The false-positive rate that is allowed.
        tpr: The true-positive rate reached.
        low: Lower end of its Clopper-Pearson interval, 95 %.
        high: Upper end of the same interval.
        false_alarms: Others that were accused; at most `fpr` of them.
        enough: Whether at least ten false alarms are allowed; with fewer the rate is uncertain.
        limit: Largest `tpr` that the (epsilon, delta) guarantee allows; None without a guarantee.
        within: Whether the counts are consistent with the guarantee.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    false_alarms: int
    enough: bool
    limit: float | None
    within: bool


def roc_of(statistic: np.ndarray, members: np.ndarray) -> Roc:
    """Count hits and false alarms at every threshold.

    Args:
        statistic: (n,) float, larger for what looks like a member.
        members: (n,) bool.

    >>> roc = roc_of(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    >>> roc.hits.tolist(), roc.false_alarms.tolist()
    ([0, 1, 2, 2], [0, 0, 1, 2])
    """
    order = np.argsort(-statistic, kind="stable")
    ranked = statistic[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=np.int64)
    hits = np.cumsum(members[order])[ends]
    return Roc(np.concatenate([[0], ends + 1 - hits]), np.concatenate([[0], hits]))


def auc_of(statistic: np.ndarray, members: np.ndarray) -> tuple[float, float]:
    """Return the area under the curve and its standard deviation under chance.

    Source: Mann and Whitney 1947; ties count half.

    >>> auc_of(np.array([2.0, 1.0, 0.0]), np.array([True, False, False]))[0]
    1.0
    """
    inside = int(members.sum())
    outside = len(members) - inside
    if not inside or not outside:
        return 0.5, math.inf
    ranks = rankdata(statistic)
    area = (ranks[members].sum() - inside * (inside + 1) / 2) / (inside * outside)
    return float(area), math.sqrt((inside + outside + 1) / (12 * inside * outside))


def rate_at(roc: Roc, fpr: float, *, epsilon: float | None = None, delta: float = 0.0) -> Rate:
    """Return the largest true-positive rate at a false-positive rate of at most `fpr`.

    The interval takes decisions as independent and the threshold as given.

    Args:
        roc: From `roc_of`.
        fpr: In (0, 1).
        epsilon: Epsilon of the guarantee for one image; None without one.
        delta: Delta of the guarantee.
    """
    at = int(np.searchsorted(roc.false_alarms, math.floor(fpr * roc.num_others + 1e-9), side="right")) - 1
    hits, alarms = int(roc.hits[at]), int(roc.false_alarms[at])
    low, high = clopper_pearson(hits, roc.num_members, CONFIDENCE)
    limit = None if epsilon is None else float(largest_tpr(np.array(fpr), epsilon, delta))
    return Rate(
        fpr=fpr,
        tpr=hits / max(1, roc.num_members),
        low=low,
        high=high,
        false_alarms=alarms,
        enough=fpr * roc.num_others >= LEAST_FALSE_ALARMS,
        limit=limit,
        within=epsilon is None or _within(roc, hits, alarms, epsilon, delta),
    )


def _within(roc: Roc, hits: int, alarms: int, epsilon: float, delta: float) -> bool:
    least, _ = clopper_pearson(hits, roc.num_members, _ACCUSING)
    _, most = clopper_pearson(alarms, roc.num_others, _ACCUSING)
    return least <= float(largest_tpr(np.array(most), epsilon, delta))


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a probability.

    Without a trial it is all of [0, 1].

    >>> low, high = clopper_pearson(0, 10, 0.95)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    if not trials:
        return 0.0, 1.0
    each = (1 + confidence) / 2
    return rate_lower_bound(hits, trials, confidence=each), rate_upper_bound(hits, trials, confidence=each)


def largest_tpr(fpr: np.ndarray, epsilon: float, delta: float) -> np.ndarray:
    """Return the largest true-positive rate under (epsilon, delta)-DP.

    Source: Kairouz et al. 2015, arXiv:1311.0776: TPR <= e^epsilon FPR + delta, and the same for misses.

    >>> largest_tpr(np.array([0.01, 0.9]), 1.0, 0.0).round(4).tolist()
    [0.0272, 0.9632]
    """
    return 1.0 - epsilon_trade_off(fpr, epsilon=epsilon, delta=delta)
