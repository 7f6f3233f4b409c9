"""Synthetic features that a frozen backbone could have computed, from public constants alone."""

from dataclasses import dataclass

import numpy as np

# Directions after which the spectrum of features falls off. Fitted on CIFAR-10 and the digits with EfficientNet-Lite0.
_KNEE = 10.0
# Standard deviation of the logarithm of a class's spread in one direction.
_SCATTER = 0.8


@dataclass(frozen=True)
class FeatureTask:
    """Public constants of one kind of classification task.

    The squared length of a feature, 1, has three parts: what all images share, what differs between classes, and what
    differs within a class.

    Attributes:
        name: Name in tables.
        like: Public data set whose features it was fitted on.
        between: Part that differs between classes.
        within: Part that differs within a class.
        decay: Exponent by which the spectrum within a class falls.
        class_decay: Exponent by which the spectrum between classes falls faster than that.
    """

    name: str
    like: str
    between: float
    within: float
    decay: float
    class_decay: float


TASKS = (
    # Fitted on the spectra of CIFAR-10 and of the digits, EfficientNet-Lite0 at 128 px.
    FeatureTask("hard", "CIFAR-10", between=0.04, within=0.74, decay=1.2, class_decay=1.1),
    FeatureTask("easy", "the digits", between=0.1, within=0.27, decay=1.5, class_decay=1.0),
)


def draw_features(
    task: FeatureTask, num_rows: int, num_classes: int, num_features: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw features of length 1 and labels, classes equally likely.

    Each class is a Gaussian around its own mean. Axes are the directions of the spectrum: every method that is compared
    gives the same in all rotations.

    Returns:
        Features (n, d) float32 and labels (n,) int64.
    """
    place = 1.0 + np.arange(num_features) / _KNEE
    within = _spectrum(place**-task.decay, task.within)
    between = _spectrum(place ** -(task.decay + task.class_decay), task.between)
    shared = _spectrum(place**-task.decay, 1.0 - task.between - task.within)
    means = between * rng.standard_normal((num_classes, num_features))
    # The classes' own average belongs to what all images share.
    means += shared * rng.standard_normal(num_features) - means.mean(axis=0)
    labels = rng.integers(0, num_classes, num_rows)
    # Each class has a spread of its own. With equal ones least squares would be the best rule, which it never is.
    own = np.exp(_SCATTER * rng.standard_normal((num_classes, num_features)) - _SCATTER**2)
    rows = (means[labels] + own[labels] * within * rng.standard_normal((num_rows, num_features))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, labels


def _spectrum(shape: np.ndarray, total: float) -> np.ndarray:
    """Return standard deviations by direction whose squares have a sum."""
    return np.asarray(np.sqrt(total * shape / shape.sum()))
