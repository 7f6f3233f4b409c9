"""Local training of a linear head without privacy, in NumPy alone."""

import numpy as np

from client.training.batch_buffer import BatchBuffer
from client.training.optimizer import ArrayOptimizer
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT, residuals


def shuffled_batches(num_rows: int, settings: LocalSettings, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the row numbers of each step of one round.

    Each epoch visits every row once, in a new order from the public stream `rng`.
    """
    batches: list[np.ndarray] = []
    size = settings.batch_size or max(1, num_rows)
    for _ in range(settings.epochs):
        order = rng.permutation(num_rows)
        batches += [order[first : first + size] for first in range(0, num_rows, size)]
    return batches


def train_head(
    arrays: Arrays, features: np.ndarray, labels: np.ndarray, settings: LocalSettings, rng: np.random.Generator
) -> Arrays:
    """Train a linear head for one round of mini-batches on softmax cross-entropy.

    `arrays` holds `head.weight`, (classes, d) float32, and is left untouched; the new array is equal in shape. Features
    are (n, d) float32, labels (n,) int64; n may be 0. The public stream `rng` orders the batches.
    """
    weight = arrays[HEAD_WEIGHT].astype(np.float32, copy=True)
    optimizer = ArrayOptimizer(settings, weight)
    buffer = BatchBuffer(features, settings.batch_size or len(labels))
    for shuffled in shuffled_batches(len(labels), settings, rng):
        rows = np.sort(shuffled)
        batch = buffer.fetch(rows)
        logit_gradients = residuals(batch, labels[rows], weight, label_smoothing=settings.label_smoothing)
        optimizer.step(weight, logit_gradients.T @ batch / np.float32(len(rows)))
    return {HEAD_WEIGHT: weight}
