"""Labelled images with the scores that a model gave them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NUM_BINS = 15


# Compared by identity (eq=False), because arrays cannot be compared as one value.
@dataclass(frozen=True, eq=False)
class ScoredImages:
    """The scores of n images.

    Attributes:
        labels: (n,) int64 true classes.
        logits: (n, classes) float.
        units: (n,) int64, equal for images of one unit, such as a patient.
    """

    labels: np.ndarray
    logits: np.ndarray
    units: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: np.ndarray) -> "ScoredImages":
        """Return some of the images."""
        return ScoredImages(self.labels[rows], self.logits[rows], self.units[rows])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.logits.shape[1])

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted classes, (n,) int64."""
        return np.asarray(self.logits.argmax(axis=1))

    @cached_property
    def support(self) -> np.ndarray:
        """Images of each true class, (classes,) int64."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (classes, classes) int64, true class by row."""
        cells = np.bincount(self.labels * self.num_classes + self.predicted, minlength=self.num_classes**2)
        return cells.reshape(self.num_classes, self.num_classes)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (n, classes) float64."""
        # The classifier needs torch, and a simulation with cached features does without.
        from common.inference.classifier import probabilities

        return probabilities(self.logits)

    @cached_property
    def bins(self) -> np.ndarray:
        """Bin of each image's largest probability, (n,) int64, of `NUM_BINS` of equal width."""
        return np.minimum((self.confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Largest probability of each image, (n,) float64."""
        return np.asarray(self.probabilities.max(axis=1))

    @cached_property
    def log_odds(self) -> np.ndarray:
        """Logarithm of p / (1 - p) for each class, (n, classes) float64.

        They rank images as the probabilities do, and do not become equal where a probability rounds to 0 or 1.
        """
        # Not with this module, which every run loads before its first image.
        from scipy.special import logsumexp

        logits = self.logits.astype(np.float64)
        total = logsumexp(logits, axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            odds = logits - total - np.log1p(-np.minimum(np.exp(logits - total), 1.0))
        # For the largest class 1 - p has lost its digits. The sum of the others has them.
        largest = (np.arange(len(logits)), logits.argmax(axis=1))
        others = logits.copy()
        others[largest] = -np.inf
        odds[largest] = logits[largest] - logsumexp(others, axis=1)
        # Images whose logits are the same in another order are tied, whatever the last digits of a sum are.
        return np.asarray(np.round(odds, 9))

    @property
    def grouped(self) -> bool:
        """True if some unit has several images."""
        return len(np.unique(self.units)) < len(self)
