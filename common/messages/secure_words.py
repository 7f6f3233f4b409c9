"""The vector of a secure sum with a client's update and counts.

The update is weighted by the client's declared size before it is encoded, because the server cannot weigh what it does
not see. All that decides the encoding is public, so clients and server agree on it without a message.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from flwr.app import MetricRecord, RecordDict

from common.arrays import Arrays
from common.config.secure_sum import SecureSum
from common.errors import FederationError, NotFiniteError
from common.messages.codec import Evaluation, decode_evaluation, encode_evaluation
from common.messages.fields import (
    CONFIDENCE_COUNTS,
    CONFUSION,
    CORRECT,
    LOSS_SUM,
    METRICS,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NUM_EXAMPLES,
    SCORE_COUNTS,
    WRONG,
    Releases,
)
from common.score_histograms import NUM_CONFIDENCE_BINS, NUM_SCORE_BINS
from common.secagg.primitives.fixed_point import FixedPoint, choose_scale
from common.secagg.primitives.ring import Ring, Words
from common.secagg.protocol.roster import Roster
from common.secagg.protocol.terms import Terms

WORD_BITS = 64
# No useful update is longer. A longer one could leave the ring, and the sum would be another number.
LONGEST_UPDATE = float(1 << 16)
_LARGEST_LOSS = float(1 << 32)
_COARSEST_STEP = 1e-6
_LARGEST_COUNT = 1 << 40


@dataclass(frozen=True)
class SecureWords:
    """The layout of the vectors of one run.

    Attributes:
        shapes: Names and shapes of the tensors that travel.
        num_classes: Number of classes.
        releases: What leaves in the sum.
        sizes: Declared number of units of each client, by name.
        num_clients: Most clients that can be in one sum.
    """

    shapes: Mapping[str, tuple[int, ...]]
    num_classes: int
    releases: Releases
    sizes: Mapping[str, int]
    num_clients: int

    def lengths(self, num_rounds: int) -> tuple[int, ...]:
        """Return the words of each round's vector, the closing evaluation as one more round."""
        counted = [self._num_values + self._num_counts(self._of_round(number)) for number in range(1, num_rounds + 1)]
        closing = self._num_counts(self.releases.summed(closing=True))
        return tuple([*counted, closing] if closing else counted)

    def terms(self, constants: SecureSum, roster: Roster, *, run: str, attempt: int, num_rounds: int) -> Terms:
        """Return the constants that every key and signature of a set-up is bound to.

        Raises:
            SecureSumError: They contradict each other or the roster.
        """
        plan = {
            "mechanism": self.releases.mechanism.name,
            "metrics": self.releases.metrics,
            "sizes": dict(sorted(self.sizes.items())),
            "tensors": {name: list(shape) for name, shape in self.shapes.items()},
            "classes": self.num_classes,
        }
        return Terms(
            run=run,
            attempt=attempt,
            roster=roster.digest,
            num_clients=constants.num_clients,
            num_colluding=constants.colluding,
            num_honest=constants.honest,
            lengths=self.lengths(num_rounds),
            word_bits=WORD_BITS,
            plan=hashlib.sha256(json.dumps(plan).encode()).digest(),
        )

    @cached_property
    def point(self) -> FixedPoint:
        """The encoding of weighted updates, whose sum over all clients fits the ring."""
        return _point(self.num_clients, LONGEST_UPDATE)

    def encode_update(self, update: Arrays, name: str) -> Words:
        """Return a client's weighted update as words.

        Raises:
            NotFiniteError: It is not finite, or too long for the ring. Nothing may be summed then.
        """
        values = _flat(update, self.shapes) * (self.sizes[name] / sum(self.sizes.values()))
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.linalg.norm(values))
        # Encoding would shorten it. Without a clip in the run's settings this is another update than the plain one.
        if not norm <= LONGEST_UPDATE:
            raise NotFiniteError("training diverged: the update is not finite, or too long for a secure sum")
        return self.point.encode(values)

    def encode_counts(self, evaluation: Evaluation | None, *, server_round: int | None) -> Words:
        """Return counts as words, the closing ones where the round is None.

        Raises:
            FederationError: The counts are not those that leave in this round, or one is too large.
        """
        keys = self._of_round(server_round)
        metrics = encode_evaluation(0, evaluation).metric_records[METRICS]
        # A model that has diverged has no loss. There is no word for that.
        if LOSS_SUM in keys:
            metrics.setdefault(LOSS_SUM, 0.0)
        if set(metrics) != {NUM_EXAMPLES, *keys}:
            raise FederationError("counts that are not those of the round were to be summed")
        return np.concatenate([_no_words(), *(self._words(key, metrics[key]) for key in keys)])

    def _words(self, key: str, value: object) -> Words:
        if key == LOSS_SUM:
            return _point(self.num_clients, _LARGEST_LOSS).encode(np.atleast_1d(np.asarray(value, dtype=np.float64)))
        counts = np.atleast_1d(np.asarray(value, dtype=np.int64))
        if counts.shape != (self._size(key),) or (np.abs(counts) > _LARGEST_COUNT).any():
            raise FederationError("counts of another number than agreed were to be summed")
        return Ring(WORD_BITS).words_of(counts)

    def average_update(self, words: Words, survivors: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the survivors' weighted average update, float64."""
        share = sum(self.sizes[name] for name in survivors) / sum(self.sizes.values())
        values = self.point.decode(words[: self._num_values]) / share
        parts = np.split(values, np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def summed_counts(self, words: Words, num_survivors: int, *, server_round: int | None) -> Evaluation | None:
        """Return the counts that are summed in a vector, None where it has none.

        Raises:
            FederationError: The sum cannot be one of counts, so a client has sent something else.
        """
        keys = self._of_round(server_round)
        counted = words[0 if server_round is None else self._num_values :]
        parts = np.split(counted, np.cumsum([self._size(key) for key in keys])[:-1])
        metrics = MetricRecord()
        for key, part in zip(keys, parts, strict=False):
            if key == LOSS_SUM:
                metrics[key] = float(_point(self.num_clients, _LARGEST_LOSS).decode(part)[0])
            else:
                values = Ring(WORD_BITS).signed(part).tolist()
                metrics[key] = values[0] if key in (CORRECT, WRONG) else values
        summed = decode_evaluation(RecordDict({METRICS: metrics}), self.num_classes)
        if summed is None or summed.noised is None:
            return summed
        return replace(summed, noised=replace(summed.noised, num_clients=num_survivors))

    def _of_round(self, server_round: int | None) -> tuple[str, ...]:
        if server_round is None:
            return self.releases.summed(closing=True)
        return self.releases.in_round(server_round).summed(closing=False)

    @cached_property
    def _num_values(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def _num_counts(self, keys: Iterable[str]) -> int:
        return sum(map(self._size, keys))

    def _size(self, key: str) -> int:
        classes = self.num_classes
        return {
            CONFUSION: classes**2,
            NOISED_CONFUSION: classes**2,
            SCORE_COUNTS: 2 * classes * NUM_SCORE_BINS,
            NOISED_SCORE_COUNTS: 2 * classes * NUM_SCORE_BINS,
            CONFIDENCE_COUNTS: 2 * NUM_CONFIDENCE_BINS,
            NOISED_CONFIDENCE_COUNTS: 2 * NUM_CONFIDENCE_BINS,
        }.get(key, 1)


def _point(num_clients: int, longest: float) -> FixedPoint:
    return choose_scale(
        num_clients=num_clients,
        clipping_norm=longest,
        noise_bound=0.0,
        word_bits=WORD_BITS,
        largest_step=_COARSEST_STEP * longest,
    )


def _no_words() -> Words:
    return Ring(WORD_BITS).zeros(0)


def _flat(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[name], dtype=np.float64).ravel() for name in shapes])
