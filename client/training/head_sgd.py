"""Local training of a linear head without privacy: NumPy only."""

import numpy as np

from client.training.batch_buffer import FeatureRows
from client.training.optimizer import ArrayOptimizer
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT, residuals


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
    arrays: Arrays,
    features: np.ndarray,
    labels: np.ndarray,
    settings: LocalSettings,
    rng: np.random.Generator,
) -> Arrays:
    """One round of mini-batch training on softmax cross-entropy.

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
    optimizer = ArrayOptimizer(settings, weight)
    held = FeatureRows(features, settings.batch_size)
    for shuffled in shuffled_batches(len(labels), settings, rng):
        batch = np.sort(shuffled)
        rows = held.batch(batch)
        logit_gradients = residuals(rows, labels[batch], weight, label_smoothing=settings.label_smoothing)
        optimizer.step(weight, logit_gradients.T @ rows / np.float32(len(batch)))
    return {HEAD_WEIGHT: weight}
