"""Local training under differential privacy (DP-SGD), of a linear head or any flat weights."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.training.batch_buffer import BatchBuffer
from client.training.optimizer import ArrayOptimizer
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.errors import PrivacyError
from common.models.linear_head import HEAD_WEIGHT, residuals
from common.privacy.clipping import clipped_head_group_sum, clipped_head_sum, row_norms
from common.privacy.counts.discrete_gaussian import ByteStream, discrete_gaussian
from common.privacy.noise import SecureStream, UniformStream, add_noise, poisson_batch
from common.privacy.plan import PrivacyPlan
from common.system.aligned_arrays import aligned

# (flat weights, numbers of the units in a batch) -> sum of clipped per-unit gradients, both (p,) float64.
ClippedSum = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PrivateStreams:
    """Random streams of sampling and noise for one message."""

    sampling: UniformStream
    noise: ByteStream

    @classmethod
    def fresh(cls) -> "PrivateStreams":
        """Draw new keys from the operating system, once for each message."""
        # Never from a seed, and never kept. Two messages under one noise would reveal their difference.
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
        """Return a stream for the noise of one release of counts."""
        return SecureStream()

    def release_labels(self, counts: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        """Return label counts with the plan's noise, shape (classes,), int64.

        Raises:
            PrivacyError: The plan has no noise for label counts.
        """
        # Without this check a missing plan would give weights by exact counts.
        if plan.label_noise_stddev is None:
            raise PrivacyError("labels may be counted with noise only, and the plan has no noise for them")
        noise = discrete_gaussian(counts.size, noise_stddev=plan.label_noise_stddev, stream=self.for_counts())
        return np.asarray(counts + noise, dtype=np.int64)


FRESH_STREAMS = FreshStreams()


def private_steps(
    start: np.ndarray,
    num_units: int,
    clipped_sum: ClippedSum,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> np.ndarray:
    """Train flat weights for one round of DP-SGD.

    Guarantee: exactly `plan.steps_per_round` steps, and the accountant counts each as one `plan.event(1)`. An empty
    batch is a step like any other. The divisor is the plan's expected batch size, whatever was drawn. `clipped_sum`
    must change by at most `plan.max_grad_norm` when one unit joins or leaves. Weights are (p,) float64, and `num_units`
    may be 0. `streams` must be fresh, for this message alone.

    Source: Abadi et al. 2016, arXiv:1607.00133.
    """
    weights = start.copy()
    optimizer = ArrayOptimizer(settings, weights)
    # A fixed number of steps. Stopping early by the data would itself release something.
    for _ in range(plan.steps_per_round):
        # Independent draws, as the accountant's amplification assumes. Shuffled batches would not do.
        batch = poisson_batch(num_units, sample_rate=plan.sample_rate, stream=streams.sampling)
        # An empty batch gets noise too. A step without noise would show that no unit was drawn.
        noised = streams.release(clipped_sum(weights, batch), plan)
        # Not by the number of drawn units, which is private and would change the noise's scale.
        optimizer.step(weights, noised / plan.expected_batch_size)
    return weights


class UnitRows:
    """Index of the rows that belong to each privacy unit.

    `units` is (n,) int64, equal for rows of one unit. If `grouped`, some unit has more than one row.
    """

    def __init__(self, units: np.ndarray) -> None:
        distinct, self._unit = np.unique(units, return_inverse=True)
        self.count = len(distinct)
        self.grouped = self.count < len(units)
        self._row_of = np.argsort(self._unit, kind="stable")

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """Return the row numbers of some units, in increasing order."""
        if self.grouped:
            return np.flatnonzero(np.isin(self._unit, batch))
        return np.sort(self._row_of[batch])

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit of each row, (b,) int64."""
        return np.asarray(self._unit[rows])


def train_head_privately(
    arrays: Arrays,
    features: np.ndarray,
    labels: np.ndarray,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
    *,
    units: np.ndarray | None = None,
    feature_norms: np.ndarray | None = None,
) -> Arrays:
    """Train a linear head for one round of DP-SGD, without per-example gradients.

    An example's gradient is an outer product, so its norm follows in closed form. `arrays` holds `head.weight`,
    (classes, d) float32, and is left untouched; the new array is equal in shape. Features are (n, d) float32, labels
    (n,) int64; n may be 0. Rows with equal `units`, (n,) int64, are clipped together; each row alone if None.
    `feature_norms` are `row_norms` of the features, computed if left out. `streams` must be fresh, for this message
    alone.
    """
    shape = arrays[HEAD_WEIGHT].shape
    members = UnitRows(np.arange(len(labels)) if units is None else units)
    clipped = _head_sum(shape, features, labels, members, plan, settings, feature_norms)
    start = arrays[HEAD_WEIGHT].astype(np.float64).ravel()
    weights = private_steps(start, members.count, clipped, plan, settings, streams)
    return {HEAD_WEIGHT: weights.reshape(shape).astype(np.float32)}


def head_gradient_sum(
    arrays: Arrays,
    features: np.ndarray,
    labels: np.ndarray,
    plan: PrivacyPlan,
    settings: LocalSettings,
    *,
    units: np.ndarray | None = None,
    feature_norms: np.ndarray | None = None,
) -> np.ndarray:
    """Return the clipped sum of a linear head's gradients over all units.

    The result is (classes * d,) float64 and has no noise: it may leave only with this client's share of it, in a secure
    sum. Arguments are as in `train_head_privately`.

    Raises:
        PrivacyError: The plan is not for one sum a round with every unit in it, or its noise is not in shares.
    """
    check_summed(plan)
    members = UnitRows(np.arange(len(labels)) if units is None else units)
    clipped = _head_sum(arrays[HEAD_WEIGHT].shape, features, labels, members, plan, settings, feature_norms)
    return clipped(arrays[HEAD_WEIGHT].astype(np.float64).ravel(), np.arange(members.count))


def check_summed(plan: PrivacyPlan) -> None:
    """Refuse a plan without one gradient sum a round over all units.

    Raises:
        PrivacyError: Its noise is not in shares, or it has sampling or several steps.
    """
    # The events of shares are priced without sampling, and a second step would need a second sum.
    if not (plan.noise_shares and plan.sample_rate == 1 and plan.steps_per_round == 1):
        raise PrivacyError("a gradient sum was asked for under a plan that has none")


def _head_sum(
    shape: tuple[int, ...],
    features: np.ndarray,
    labels: np.ndarray,
    members: UnitRows,
    plan: PrivacyPlan,
    settings: LocalSettings,
    feature_norms: np.ndarray | None,
) -> ClippedSum:
    """Return how a head's clipped gradients are summed over a batch of units."""
    bound = plan.max_grad_norm
    buffer = BatchBuffer(features, len(labels))
    norms = row_norms(features) if feature_norms is None else feature_norms
    # BLAS may round differently for other alignments, so the weight always has the same.
    weight = aligned(shape[0], shape[1], np.float32)

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        weight[...] = weights.reshape(shape)
        rows = members.rows(batch)
        drawn = buffer.fetch(rows)
        # A warning about a non-finite example would reveal that it was in this batch.
        with np.errstate(all="ignore"):
            # Row by row. In one product an example would change the rounding of its neighbours.
            logit_gradients = residuals(
                drawn,
                labels[rows],
                weight,
                row_by_row=True,
                label_smoothing=settings.label_smoothing,
                # Before the clip, so that a weight cannot change what one unit adds by more than the bound.
                class_weights=settings.class_weights,
            )
        if members.grouped:
            return clipped_head_group_sum(drawn, logit_gradients, members.units(rows), max_grad_norm=bound).ravel()
        return clipped_head_sum(drawn, logit_gradients, max_grad_norm=bound, feature_norms=norms[rows]).ravel()

    return clipped
