"""The same training under differential privacy: every step samples, clips and adds noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.optimizer import ArrayOptimizer
from client.settings import LocalSettings
from common.models.head import HEAD_WEIGHT, residuals
from common.privacy.clipping import clipped_head_sum
from common.privacy.noise import SecureStream, UniformStream, add_noise, poisson_batch
from common.privacy.plan import PrivacyPlan

# (flat weights, row numbers of a batch) -> sum of clipped per-example gradients, both (p,) float64.
ClippedSum = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PrivateStreams:
    """Two streams of one message: one samples batches, the other is noise."""

    sampling: UniformStream
    noise: UniformStream

    @classmethod
    def fresh(cls) -> "PrivateStreams":
        """New keys from the operating system; call it once a message."""
        return cls(SecureStream(), SecureStream())


def private_steps(
    start: np.ndarray,
    num_rows: int,
    clipped_sum: ClippedSum,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> np.ndarray:
    """One round of DP-SGD on flat weights.

    Guarantee: exactly `plan.steps_per_round` steps, each one event of
    `plan.event(1)`; an empty batch is a step like any other; the divisor is
    the plan's expected batch size whatever was drawn.

    Args:
        start: (p,) float64 weights.
        num_rows: Training rows of the client, may be 0.
        clipped_sum: Sum of clipped per-example gradients; its result must move by
            at most `plan.max_grad_norm` when one row joins or leaves.
        plan: Sampler, clip bound and noise.
        settings: The optimiser, which only post-processes noised sums.
        streams: Fresh streams of this message.

    Returns:
        (p,) float64 weights.

    Source: Abadi et al. 2016, arXiv:1607.00133.
    """
    weights = start.copy()
    optimizer = ArrayOptimizer(settings, weights)
    for _ in range(plan.steps_per_round):
        batch = poisson_batch(num_rows, sample_rate=plan.sample_rate, stream=streams.sampling)
        noised = add_noise(
            clipped_sum(weights, batch),
            noise_stddev=plan.noise_stddev,
            max_grad_norm=plan.max_grad_norm,
            stream=streams.noise,
        )
        optimizer.step(weights, noised / plan.expected_batch_size)
    return weights


def train_head_privately(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> dict[str, np.ndarray]:
    """One round of DP-SGD on a linear head, with per-example norms in closed form.

    Args:
        arrays: `{"head.weight": (classes, d) float32}`; left untouched.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        plan: Sampler, clip bound and noise.
        settings: The optimiser and the loss.
        streams: Fresh streams of this message.

    Returns:
        New arrays, same names and shapes, float32.
    """
    shape = arrays[HEAD_WEIGHT].shape

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        rows = features[batch]
        weight = weights.reshape(shape).astype(np.float32)
        with np.errstate(all="ignore"):  # a warning would tell which batch held a non-finite example
            slopes = residuals(rows, labels[batch], weight, row_by_row=True, label_smoothing=settings.label_smoothing)
        return clipped_head_sum(rows, slopes, max_grad_norm=plan.max_grad_norm).ravel()

    start = arrays[HEAD_WEIGHT].astype(np.float64).ravel()
    weights = private_steps(start, len(labels), clipped, plan, settings, streams)
    return {HEAD_WEIGHT: weights.reshape(shape).astype(np.float32)}
