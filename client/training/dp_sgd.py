"""The same training under differential privacy: every step samples, clips and adds noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.training.batch_buffer import FeatureRows
from client.training.optimizer import ArrayOptimizer
from client.training.round_settings import LocalSettings
from common.models.linear_head import HEAD_WEIGHT, residuals
from common.privacy.clipping import clipped_head_group_sum, clipped_head_sum, row_norms
from common.privacy.discrete_gaussian import ByteStream
from common.privacy.noise import SecureStream, UniformStream, add_noise, poisson_batch
from common.privacy.plan import PrivacyPlan
from common.system.aligned_arrays import aligned

# (flat weights, numbers of the units in a batch) -> sum of clipped per-unit gradients, both (p,) float64.
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

    def release(self, clipped_sum: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        """Return a step's clipped sum with the plan's noise, shape (p,), float64."""
        return add_noise(
            clipped_sum, noise_stddev=plan.noise_stddev, max_grad_norm=plan.max_grad_norm, stream=self.noise
        )


class FreshStreams:
    """The streams of each message, under new keys from the operating system.

    Audits pass an object of their own in its place. No setting and no message can.
    """

    def for_training(self) -> PrivateStreams:
        """Return streams for one round's sampling and noise."""
        return PrivateStreams.fresh()

    def for_counts(self) -> ByteStream:
        """Return a stream for the noise of one evaluation's counts."""
        return SecureStream()


FRESH_STREAMS = FreshStreams()


def private_steps(
    start: np.ndarray,
    num_units: int,
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
        num_units: Units the client trains on, may be 0.
        clipped_sum: Sum of clipped per-unit gradients; its result must move by
            at most `plan.max_grad_norm` when one unit joins or leaves.
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
        batch = poisson_batch(num_units, sample_rate=plan.sample_rate, stream=streams.sampling)
        optimizer.step(weights, streams.release(clipped_sum(weights, batch), plan) / plan.expected_batch_size)
    return weights


class UnitRows:
    """Which rows belong to which privacy unit.

    Args:
        units: (n,) int64, equal for rows of one unit.

    Attributes:
        count: How many units there are.
        grouped: Whether any unit has more than one row.
    """

    def __init__(self, units: np.ndarray) -> None:
        found, self._unit = np.unique(units, return_inverse=True)
        self.count = len(found)
        self.grouped = self.count < len(units)
        self._row_of = np.argsort(self._unit, kind="stable")

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """Row numbers of some units, in increasing order."""
        if self.grouped:
            return np.flatnonzero(np.isin(self._unit, batch))
        return np.sort(self._row_of[batch])

    def units(self, rows: np.ndarray) -> np.ndarray:
        """(b,) int64, the unit of each row."""
        return np.asarray(self._unit[rows])


def train_head_privately(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    labels: np.ndarray,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
    *,
    units: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """One round of DP-SGD on a linear head, with per-example norms in closed form.

    Args:
        arrays: `{"head.weight": (classes, d) float32}`; left untouched.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        plan: Sampler, clip bound and noise.
        settings: The optimiser and the loss.
        streams: Fresh streams of this message.
        units: (n,) int64, equal for rows that are clipped together; every row alone if left out.

    Returns:
        New arrays, same names and shapes, float32.
    """
    shape, bound = arrays[HEAD_WEIGHT].shape, plan.max_grad_norm
    members = UnitRows(np.arange(len(labels)) if units is None else units)
    held, weight, lengths = (
        FeatureRows(features, len(labels)),
        aligned(shape[0], shape[1], np.float32),
        row_norms(features),
    )

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        weight[...] = weights.reshape(shape)
        rows = members.rows(batch)
        inputs = held.batch(rows)
        with np.errstate(all="ignore"):  # a warning would tell which batch held a non-finite example
            logit_gradients = residuals(
                inputs, labels[rows], weight, row_by_row=True, label_smoothing=settings.label_smoothing
            )
        if members.grouped:
            return clipped_head_group_sum(inputs, logit_gradients, members.units(rows), max_grad_norm=bound).ravel()
        return clipped_head_sum(inputs, logit_gradients, max_grad_norm=bound, feature_norms=lengths[rows]).ravel()

    start = arrays[HEAD_WEIGHT].astype(np.float64).ravel()
    weights = private_steps(start, members.count, clipped, plan, settings, streams)
    return {HEAD_WEIGHT: weights.reshape(shape).astype(np.float32)}
