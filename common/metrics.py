"""Confusion counts and the scores derived from them.

Counts are added over clients before scores are derived.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np

from common.errors import FederationError


@dataclass(frozen=True)
class Counts:
    """The confusion counts of an evaluation.

    The sum of two clients' counts is the counts of all their images. In `confusion`, (classes, classes) int64, rows are
    true labels and columns predictions. `loss_sum` is cross-entropy in nats over the same images, NaN where a client
    did not send it.
    """

    confusion: np.ndarray
    loss_sum: float

    def __add__(self, other: "Counts") -> "Counts":
        if self.confusion.shape != other.confusion.shape:
            raise FederationError("counts over different numbers of classes cannot be added")
        return Counts(self.confusion + other.confusion, self.loss_sum + other.loss_sum)

    @property
    def num_examples(self) -> int:
        """Number of counted images."""
        return int(self.confusion.sum())


@dataclass(frozen=True)
class NoisedCounts:
    """Counts of units, each with noise added.

    The sum of two clients' counts is noised counts of all their units. `cells` are (2,) int64, units predicted right
    and wrong, or (classes, classes) int64, rows true labels and columns predictions. Noise can make a cell negative.
    Each cell contains the noise of `num_clients` clients.
    """

    cells: np.ndarray
    num_clients: int = 1

    def __add__(self, other: "NoisedCounts") -> "NoisedCounts":
        if self.cells.shape != other.cells.shape:
            raise FederationError("noised counts of different shapes cannot be added")
        return NoisedCounts(self.cells + other.cells, self.num_clients + other.num_clients)

    def accuracy(self, noise_stddev: float, total: tuple[float, float] | None = None) -> tuple[float, float]:
        """Return the accuracy and its standard deviation.

        The deviation comes from the noise alone. If the noised total is not positive, the result is (0, inf).
        `noise_stddev` is that of one client in one cell. `total` is another estimate of the number of units with its
        variance, from counts with noise of their own. The result is then the least-squares estimate from both.
        """
        pair = self.cells.ndim == 1
        right = float(self.cells[0] if pair else np.trace(self.cells))
        counts = np.array([right, float(self.cells.sum()) - right])
        cells_right = 1 if pair else len(self.cells)
        variances = self.num_clients * noise_stddev**2 * np.array([cells_right, self.cells.size - cells_right])
        covariance = np.diag(variances)
        if total is not None:
            gain = variances / (variances.sum() + total[1])
            counts = counts + gain * (total[0] - counts.sum())
            covariance = covariance - np.outer(gain, variances)
        if counts.sum() <= 0:
            return 0.0, float("inf")
        # The derivative of right / (right + wrong) by both counts.
        slope = np.array([counts[1], -counts[0]]) / counts.sum() ** 2
        spread = math.sqrt(max(0.0, slope @ covariance @ slope))
        return min(1.0, max(0.0, counts[0] / counts.sum())), spread


def interval(share: float, stddev: float) -> tuple[float, float]:
    """Return the interval of one standard deviation around a share, within [0, 1].

    >>> interval(0.75, 0.5)
    (0.25, 1.0)
    """
    return max(0.0, share - stddev), min(1.0, share + stddev)


# Quantile of the normal distribution for intervals of 95 %.
_NORMAL_QUANTILE = 1.959963984540054


def wilson_interval(hits: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's interval of 95 % of each share.

    They are NaN where nothing was counted.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.

    >>> low, high = wilson_interval(np.array([8]), np.array([10]))
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (0.4902, 0.9433)
    """
    square = _NORMAL_QUANTILE**2
    with np.errstate(divide="ignore", invalid="ignore"):
        share = hits / counts
        spread = _NORMAL_QUANTILE * np.sqrt(share * (1 - share) / counts + square / (4 * counts**2))
        low, high = ((share + square / (2 * counts) + sign * spread) / (1 + square / counts) for sign in (-1, 1))
    # Rounding can leave the range by 1e-17.
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


class _Addable(Protocol):
    def __add__(self, other: Self, /) -> Self: ...


_Sum = TypeVar("_Sum", bound=_Addable)


def total(parts: Iterable[_Sum]) -> _Sum | None:
    """Return the sum of counts, None without parts."""
    summed: _Sum | None = None
    for part in parts:
        summed = part if summed is None else summed + part
    return summed


def count(logits: np.ndarray, labels: np.ndarray) -> Counts:
    """Count (n, classes) predictions by (n,) true labels and sum up the cross-entropy."""
    num_classes = logits.shape[1]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    if not len(labels):
        return Counts(confusion, 0.0)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    # Subtracting the largest logit keeps `exp` from overflowing.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return Counts(confusion, float((log_total - shifted[np.arange(len(labels)), labels]).sum()))


@dataclass(frozen=True)
class Scores:
    """The scores of one confusion matrix, all in [0, 1].

    Means are over the classes that occur, for macro F1 over those predicted too. `precision`, `recall` and `f1` are
    (classes,) float64, 0 where a class was never predicted, never occurs or has no right prediction.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def score(confusion: np.ndarray) -> Scores:
    """Derive all scores from counts (classes, classes), rows true, columns predicted.

    They are all zero if nothing was counted.

    Source: the definitions of scikit-learn's `precision_recall_fscore_support` and `balanced_accuracy_score`; a test
    compares.

    >>> score(np.array([[8, 2], [0, 10]])).accuracy
    0.9
    """
    hits = np.diag(confusion).astype(np.float64)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    recall = _ratio(hits, actual)
    f1 = _ratio(2 * hits, actual + predicted)
    occurs, seen = actual > 0, (actual + predicted) > 0
    total = confusion.sum()
    return Scores(
        accuracy=float(hits.sum() / total) if total else 0.0,
        balanced_accuracy=float(recall[occurs].mean()) if occurs.any() else 0.0,
        macro_f1=float(f1[seen].mean()) if seen.any() else 0.0,
        weighted_f1=float((f1 * actual).sum() / total) if total else 0.0,
        precision=_ratio(hits, predicted),
        recall=recall,
        f1=f1,
    )


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(over, under, out=np.zeros(len(under)), where=under > 0))


def _mean_loss(counts: Counts) -> float:
    return counts.loss_sum / counts.num_examples if counts.num_examples else math.nan


@dataclass(frozen=True)
class Metric:
    """Definition of one figure that an evaluation gives.

    Its `key` is stored in `rounds.jsonl` and `summary.json`, its `name` and `decimals` are for tables. A progress line
    has one decimal fewer, and leaves out a metric without a `short` word. No mechanism releases the sum of losses that
    `needs_loss` means. A `detail` is stored for the global model's exact counts only, and shown nowhere.
    """

    key: str
    name: str
    compute: Callable[[Counts], float]
    decimals: int = 4
    short: str = ""
    needs_loss: bool = False
    detail: bool = False


METRICS = (
    Metric("accuracy", "accuracy", lambda counts: score(counts.confusion).accuracy, short="accuracy"),
    Metric("macro_f1", "macro F1", lambda counts: score(counts.confusion).macro_f1, short="F1"),
    Metric("weighted_f1", "weighted F1", lambda counts: score(counts.confusion).weighted_f1, detail=True),
    Metric("balanced_accuracy", "balanced accuracy", lambda counts: score(counts.confusion).balanced_accuracy),
    Metric("loss", "loss", _mean_loss, short="loss", needs_loss=True),
)
# Metrics that a confusion matrix alone gives.
CONFUSION_METRICS = tuple(metric for metric in METRICS if not metric.needs_loss)
