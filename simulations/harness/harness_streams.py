"""Repeated, silent and observed streams that an auditor gives a client.

They reach the client as parameters, which no message and no setting can set. A release under such a stream is NOT
PRIVATE, and none leaves the auditor's machine.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS, FreshStreams, PrivateStreams
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.noise import UniformStream
from common.privacy.plan import PrivacyPlan

_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True)
class Draw:
    """Record of one use of a stream.

    Attributes:
        stream: Purpose of the stream, such as `noise`.
        size: Number of values, or of bytes, that were drawn.
    """

    stream: str
    size: int


@dataclass(frozen=True)
class Joins:
    """Steps in which the last units of a client join the batch.

    Attributes:
        first: Number of units that are sampled as usual; `steps` decides for all later ones.
        steps: Steps that the later units join, counted from 0.
    """

    first: int
    steps: Collection[int]


class Repeated:
    """A stream that gives the same values in each replay.

    Call j returns the first values of sequence j. Drawing more or fewer values in one call therefore changes no other
    call, and a difference between two replays comes from the data.

    Args:
        purpose: Name of the stream, which selects its sequences.
        draws: List that receives each use.
        joins: For a sampling stream, forces late units into or out of a batch.
    """

    def __init__(self, purpose: str, draws: list[Draw], joins: Joins | None = None) -> None:
        self._purpose, self._draws, self._joins = purpose, draws, joins
        self._calls = 0

    def uniforms(self, size: int) -> np.ndarray:
        """Return the next call's values, shape (size,), float64 in (0, 1)."""
        values = self._next(size).uniform(2.0**-53, 1.0, size)
        if self._joins is not None:
            values[self._joins.first :] = 2.0**-53 if self._calls - 1 in self._joins.steps else _BELOW_ONE
        return values

    def random_bytes(self, size: int) -> bytes:
        """Return the next call's bytes."""
        return self._next(size).bytes(size)

    def _next(self, size: int) -> np.random.Generator:
        self._draws.append(Draw(self._purpose, size))
        self._calls += 1
        return np.random.default_rng([*self._purpose.encode(), self._calls])


class ChosenBatch:
    """A sampling stream that draws the same units in each step.

    Args:
        chosen: (n,) bool, whether a unit is drawn. It has no effect where every unit is in every step.
    """

    def __init__(self, chosen: np.ndarray) -> None:
        self._chosen = chosen

    def uniforms(self, size: int) -> np.ndarray:
        """Return values below or above any rate, shape (size,), float64 in (0, 1)."""
        return np.where(self._chosen[:size], 2.0**-53, _BELOW_ONE)


class Silent:
    """A noise stream whose noise is all zero."""

    def random_bytes(self, size: int) -> bytes:
        """Return zeros.

        They choose column 0 of the noise table, whose value is zero, and a coin that keeps it.
        """
        return bytes(size)


class RepeatedStreams(FreshStreams):
    """The same sampling and noise in each replay.

    Args:
        joins: Forces late units into or out of a batch.
        label_counts: Released in place of the client's own label counts, so that a replay has the same class weights.
        sampling: Samples all batches; the default is a repeated stream.

    Attributes:
        draws: Uses of the streams, in order.
        labels: Label counts that were released, in order.
    """

    def __init__(
        self,
        joins: Joins | None = None,
        label_counts: np.ndarray | None = None,
        sampling: UniformStream | None = None,
    ) -> None:
        self.draws: list[Draw] = []
        self.labels: list[np.ndarray] = []
        self._label_counts = label_counts
        own = Repeated("sampling", self.draws, joins)
        self._training = PrivateStreams(sampling or own, Repeated("noise", self.draws))
        self._counts = Repeated("counts", self.draws)

    def for_training(self) -> PrivateStreams:
        """Return the repeated streams of sampling and noise."""
        return self._training

    def for_counts(self) -> ByteStream:
        """Return the repeated stream of the counts' noise."""
        return self._counts

    def release_labels(self, counts: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        """Return the given label counts or those with repeated noise."""
        own = super().release_labels(counts, plan)
        self.labels.append(own if self._label_counts is None else self._label_counts)
        return self.labels[-1]


class WithoutNoise(FreshStreams):
    """Streams whose training noise is zero.

    Args:
        sampling: Samples all batches; the default is the client's own fresh stream.
    """

    def __init__(self, sampling: UniformStream | None = None) -> None:
        self._sampling = sampling

    def for_training(self) -> PrivateStreams:
        """Return a sampling stream and a noise stream of zeros."""
        if self._sampling is not None:
            return PrivateStreams(self._sampling, Silent())
        return replace(super().for_training(), noise=Silent())


class ObservedStreams(FreshStreams):
    """Streams that show what they were used for.

    Args:
        chosen: Makes the streams; the default makes the client's own.

    Attributes:
        used: Stream objects that were handed out, in order.
        sums: Noised sum of each training step, each of shape (p,), float64.
        labels: Label counts that were released, in order.
    """

    def __init__(self, chosen: FreshStreams = FRESH_STREAMS) -> None:
        self.used: list[object] = []
        self.sums: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self._chosen = chosen

    def for_training(self) -> PrivateStreams:
        """Return streams that keep each noised sum."""
        streams = self._chosen.for_training()
        self.used += [streams.sampling, streams.noise]
        return _ObservedPair(streams.sampling, streams.noise, self.sums)

    def for_counts(self) -> Any:
        """Return a stream for the noise of counts, keeping the object."""
        self.used.append(self._chosen.for_counts())
        return self.used[-1]

    def release_labels(self, counts: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        """Return noised label counts and keep them."""
        self.labels.append(super().release_labels(counts, plan))
        return self.labels[-1]


@dataclass(frozen=True)
class _ObservedPair(PrivateStreams):
    sums: list[np.ndarray]

    def release(self, clipped_sum: np.ndarray, plan: PrivacyPlan) -> np.ndarray:
        """Return a step's noised sum and keep it."""
        self.sums.append(super().release(clipped_sum, plan))
        return self.sums[-1]
