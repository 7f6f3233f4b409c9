"""Comparison of a model's confusion counts with guessing."""

from dataclasses import dataclass

import numpy as np

# In standard deviations: a model at chance is taken for a better one once in 44 times.
_MARGIN = 2.0


@dataclass(frozen=True)
class ChanceComparison:
    """Number of right predictions beside that of guessing.

    Attributes:
        right: Right predictions.
        expected: Right predictions of a model that ignores the image and predicts each class as often as this one.
        stddev: Standard deviation of `right - expected` at chance.
        largest_class: Share of the largest class, which is the accuracy of always guessing it.
    """

    right: float
    expected: float
    stddev: float
    largest_class: float

    @property
    def at_chance(self) -> bool:
        """True if the predictions cannot be told from guessing."""
        # "not >" and not "<=", because a figure that is not a number shows nothing.
        return not self.right > self.expected + _MARGIN * self.stddev


def compare_with_chance(confusion: np.ndarray, *, cell_stddev: float = 0.0) -> ChanceComparison:
    """Compare counts (classes, classes), rows true and columns predicted, with guessing.

    Guessing means that predictions do not depend on the true labels. Then, for given numbers of true and predicted
    labels, the number of right predictions has a known mean and variance. This also holds where one class is far
    larger than the others: a model that always predicts it is at chance, however accurate it is. `cell_stddev` is the
    standard deviation of the noise in each cell, and adds to the variance by linear propagation.

    Source: Cohen 1960 (expected agreement); Hoeffding 1951 (variance of a sum over a random permutation).

    >>> compare_with_chance(np.array([[90, 0], [10, 0]])).at_chance
    True
    >>> compare_with_chance(np.array([[70, 20], [1, 9]])).at_chance
    False
    """
    cells = confusion.astype(np.float64)
    # Noise can make a sum negative.
    actual, predicted = np.maximum(cells.sum(axis=1), 0), np.maximum(cells.sum(axis=0), 0)
    total = float(cells.sum())
    if total <= 1:
        return ChanceComparison(0.0, 0.0, np.inf, 1.0)
    pairs = actual * predicted
    matched = float(pairs.sum())
    permuted = (matched - (pairs * (actual + predicted)).sum() / total + (matched / total) ** 2) / (total - 1)
    derivative = np.eye(len(cells)) - (predicted[:, None] + actual[None, :]) / total + matched / total**2
    noise = cell_stddev**2 * float((derivative**2).sum())
    return ChanceComparison(
        right=float(np.trace(cells)),
        expected=matched / total,
        stddev=float(np.sqrt(max(0.0, permuted) + noise)),
        largest_class=float(actual.max() / total),
    )


def can_beat_chance(confusion: np.ndarray, *, cell_stddev: float = 0.0) -> bool:
    """Return whether such counts could tell a perfect model from guessing."""
    perfect = np.diag(np.maximum(confusion.sum(axis=1), 0))
    return not compare_with_chance(perfect, cell_stddev=cell_stddev).at_chance
