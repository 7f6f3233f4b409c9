"""Confusion counts and everything derived from them: counts add up before they are read."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.errors import FederationError


@dataclass(frozen=True)
class Counts:
    """What an evaluation counted; sums of counts are counts of the union.

    Attributes:
        confusion: (classes, classes) int64, rows are true labels, columns predictions.
        loss_sum: Sum of cross-entropy in nats over the same images.
    """

    confusion: np.ndarray
    loss_sum: float

    def __add__(self, other: "Counts") -> "Counts":
        if self.confusion.shape != other.confusion.shape:
            raise FederationError("counts over different numbers of classes cannot be added")
        return Counts(self.confusion + other.confusion, self.loss_sum + other.loss_sum)

    @property
    def num_examples(self) -> int:
        """How many images were counted."""
        return int(self.confusion.sum())


def total(parts: Iterable[Counts]) -> Counts | None:
    """Counts of the union; None if there are no parts."""
    summed: Counts | None = None
    for part in parts:
        summed = part if summed is None else summed + part
    return summed


def count(logits: np.ndarray, labels: np.ndarray) -> Counts:
    """Count predictions against labels.

    Args:
        logits: (n, classes) float.
        labels: (n,) int64.

    Returns:
        The counts; all zero for n = 0.
    """
    num_classes = logits.shape[1]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    if not len(labels):
        return Counts(confusion, 0.0)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return Counts(confusion, float((log_total - shifted[np.arange(len(labels)), labels]).sum()))


@dataclass(frozen=True)
class Scores:
    """Figures derived from one confusion matrix; all in [0, 1].

    Attributes:
        accuracy: Share of images on the diagonal.
        balanced_accuracy: Mean recall over the classes that occur.
        macro_f1: Mean F1 over the classes that occur or were predicted.
        weighted_f1: F1 weighted by how often each class occurs.
        precision: (classes,) of each class; 0 where it was never predicted.
        recall: (classes,) of each class; 0 where it never occurs.
        f1: (classes,) of each class.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def score(confusion: np.ndarray) -> Scores:
    """Derive all figures from a confusion matrix.

    Args:
        confusion: (classes, classes) counts, rows true, columns predicted.

    Returns:
        The scores; zeros if nothing was counted.

    Source: the definitions of scikit-learn's `precision_recall_fscore_support` and
    `balanced_accuracy_score`; a test compares.

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
