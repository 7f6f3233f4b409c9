"""Local training of a linear head without privacy: NumPy only."""

from dataclasses import dataclass

import numpy as np

from common.models.head import HEAD_WEIGHT, residuals


@dataclass(frozen=True)
class LocalSettings:
    """A client's optimiser, the same for all mechanisms.

    Attributes:
        learning_rate: Step length.
        momentum: Heavy-ball factor in [0, 1).
        epochs: Passes over the client's images in one round.
        batch_size: Images a step.
    """

    learning_rate: float
    momentum: float
    epochs: int
    batch_size: int


def shuffled_batches(num_rows: int, settings: LocalSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each step of one round: every row once an epoch.

    Args:
        num_rows: May be 0, which gives no steps.
        settings: Epochs and batch size.
        rng: A public stream.
    """
    batches: list[np.ndarray] = []
    for _ in range(settings.epochs):
        order = rng.permutation(num_rows)
        batches += [order[at : at + settings.batch_size] for at in range(0, num_rows, settings.batch_size)]
    return batches


def train_head(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
    settings: LocalSettings,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One round of mini-batch SGD on softmax cross-entropy.

    Args:
        arrays: `{"head.weight": (classes, d) float32}`; left untouched.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        settings: The optimiser.
        rng: A public stream that orders the batches.

    Returns:
        New arrays, same names and shapes, float32.
    """
    weight = arrays[HEAD_WEIGHT].astype(np.float32, copy=True)
    velocity = np.zeros_like(weight)
    for batch in shuffled_batches(len(labels), settings, rng):
        rows = features[batch]
        gradient = residuals(rows, labels[batch], weight).T @ rows
        velocity = np.float32(settings.momentum) * velocity + gradient / np.float32(len(batch))
        weight -= np.float32(settings.learning_rate) * velocity
    return {HEAD_WEIGHT: weight}
