"""The vector of a secure sum with a client's update and counts.

The update is weighted by the client's declared size before it is encoded, because the server cannot weigh what it does
not see. All that decides the encoding is public, so clients and server agree on it without a message.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict

from common.arrays import Arrays, from_vector, to_vector
from common.config.secure_sum import SecureSum
from common.errors import FederationError, NotFiniteError, PrivacyError
from common.messages.codec import Evaluation, decode_evaluation, encode_evaluation
from common.messages.counts_in_sums import noise_of, num_counts
from common.messages.fields import CORRECT, LOSS_SUM, METRICS, NUM_EXAMPLES, WRONG, Releases
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.plan import PrivacyPlan
from common.secagg.noise_shares import (
    ShareScale,
    clipped_words,
    counts_scale,
    gradient_scale,
    share_words,
    values_of_sum,
)
from common.secagg.primitives.fixed_point import FixedPoint, choose_scale
from common.secagg.primitives.ring import Ring, Words
from common.secagg.protocol.roster import Roster
from common.secagg.protocol.terms import Terms
from common.statistics.fixed_sums import contribution_point, fits
from common.statistics.sums import StatisticsKind, from_contribution, statistic_shapes, to_contribution

# Words of sums without noise. A step of an update is then 2^-34, to which float32 rounds values near 2^-10.
_EXACT_BITS = 48
# Words of exact sums over features, whose values reach from one image's to those of all.
_STATISTICS_BITS = 64
# Sums of noised values need more than 32 bits, because a step is at most a 2^24th of the noise.
_FEWEST_BITS = 40
# No useful update is longer. A longer one could leave the ring, and the sum would be another number.
LONGEST_UPDATE = float(1 << 12)
# Of the losses of all held-out images, a unit of the declared sizes.
_LARGEST_LOSS = float(1 << 16)
_COARSEST_STEP = 1e-6


@dataclass(frozen=True)
class SecureWords:
    """The layout of the vectors of one run.

    Attributes:
        shapes: Names and shapes of the tensors of the model that travels.
        num_classes: Number of classes.
        releases: What leaves in the sum.
        sizes: Declared number of units of each client, by name.
        num_clients: Most clients that can be in one sum.
        plan: A client's privacy plan, where its noise is in shares. Only what all clients' plans share is used.
    """

    shapes: Mapping[str, tuple[int, ...]]
    num_classes: int
    releases: Releases
    sizes: Mapping[str, int]
    num_clients: int
    plan: PrivacyPlan | None = None

    def lengths(self, num_rounds: int) -> tuple[int, ...]:
        """Return the words of each round's vector, the closing evaluation as one more round."""
        rounds = (self._of_round(number) for number in range(1, num_rounds + 1))
        counted = [self._num_values + self._num_counts(keys) for keys in rounds]
        closing = self._num_counts(self.releases.summed(closing=True))
        return tuple([*counted, closing] if closing else counted)

    def num_bytes(self, num_rounds: int) -> int:
        """Return the bytes of the longest vector of a round."""
        return max(self.lengths(num_rounds)[:num_rounds]) * self.ring.num_bytes

    def terms(self, constants: SecureSum, roster: Roster, *, run: str, attempt: int, num_rounds: int) -> Terms:
        """Return the constants that every key and signature of a set-up is bound to.

        Raises:
            ConfigError: No word is long enough for sums over features.
            SecureSumError: They contradict each other or the roster.
        """
        return Terms(
            run=run,
            attempt=attempt,
            roster=roster.digest,
            num_clients=constants.num_clients,
            num_colluding=constants.colluding,
            num_honest=constants.honest,
            lengths=self.lengths(num_rounds),
            word_bits=self.ring.word_bits,
            plan=self._digest(),
        )

    def _digest(self) -> bytes:
        """Return the digest of all that clients have agreed on besides the constants."""
        plan: dict[str, Any] = {
            "mechanism": self.releases.mechanism.name,
            "metrics": self.releases.metrics,
            "sizes": dict(sorted(self.sizes.items())),
            "tensors": {name: list(shape) for name, shape in self.shapes.items()},
            "classes": self.num_classes,
        }
        if self.releases.statistics is not None:
            plan["statistics"] = self.releases.statistics
            # Before any secret is drawn. In the round itself a refusal would come after its charge.
            _ = self.point if self.plan is None else self.gradient_scale
        if self.plan is not None:
            # Clients that add noise of different scales must not end up in one sum.
            plan["noise"] = {**asdict(self.plan), "num_units": None, "sampler": None}
        return hashlib.sha256(json.dumps(plan).encode()).digest()

    @cached_property
    def ring(self) -> Ring:
        """The smallest ring that holds each sum of the run.

        It is one for all words.

        Raises:
            ConfigError: No ring is large enough.
        """
        if self.plan is None:
            return Ring(_EXACT_BITS if self.releases.statistics is None else _STATISTICS_BITS)
        keys = {*self.releases.summed(closing=False), *self.releases.summed(closing=True)}
        counts = [self._counts_scale(key) for key in keys] if self.counts_in_shares else []
        return Ring.holding(max(_FEWEST_BITS, self._gradient_scale.bits, *(scale.bits for scale in counts)))

    def _in_ring(self, scale: ShareScale) -> ShareScale:
        # A sum is opened modulo the ring's size. Of words that wrap earlier it would also say how many were negative,
        # and each client's sign has the noise of one share alone.
        return replace(scale, bits=self.ring.word_bits)

    @property
    def gradient_scale(self) -> ShareScale:
        """The scale of gradient sums or of whole updates with noise in shares.

        Raises:
            PrivacyError: The run has no plan with noise in shares.
        """
        return self._in_ring(self._gradient_scale)

    @cached_property
    def _gradient_scale(self) -> ShareScale:
        if self.plan is None:
            raise PrivacyError("a gradient sum is for runs with noise in shares only")
        # Where whole clients are protected, each is one unit.
        total = self.num_clients if self.releases.mechanism.clips_clients else sum(self.sizes.values())
        return gradient_scale(self.plan, self._num_values, total_units=total, num_clients=self.num_clients)

    @property
    def counts_in_shares(self) -> bool:
        """True if each client adds its share of the noise to its counts."""
        return self.plan is not None and self.plan.counts is not None and self.plan.counts.noise_shares > 0

    def encode_sum(self, total: np.ndarray, name: str, stream: ByteStream) -> Words:
        """Return a client's gradient sum with its share of the noise, as words.

        `stream` must be fresh and used for this noise only.

        Raises:
            PrivacyError: The run has no noise in shares.
        """
        return share_words(total, self.gradient_scale, num_units=self.sizes[name], stream=stream)

    def encode_clipped(self, update: Arrays, stream: ByteStream) -> Words:
        """Return a client's clipped update with its share of the noise, as words.

        No size weighs it. `stream` is as in `encode_sum`.
        """
        return clipped_words(to_vector(update, self.shapes), self.gradient_scale, stream=stream)

    @property
    def point(self) -> FixedPoint:
        """The encoding of what leaves without noise, whose sum fits the ring.

        These are weighted updates, or contributions where the run takes statistics.

        Raises:
            ConfigError: No word is long enough for sums over features.
        """
        if self.releases.statistics is None:
            return self._point(None, LONGEST_UPDATE)
        return contribution_point(
            self.releases.statistics,
            self._num_values,
            total_units=sum(self.sizes.values()),
            num_clients=self.num_clients,
            word_bits=self.ring.word_bits,
        )

    def _point(self, name: str | None, longest: float) -> FixedPoint:
        """Return the encoding of a client's part of a sum.

        None stands for the whole sum. `longest` bounds its norm.
        """
        whole = choose_scale(longest=longest, word_bits=self.ring.word_bits, largest_step=_COARSEST_STEP * longest)
        return whole if name is None else whole.part(self._share(name))

    @property
    def _largest_loss(self) -> float:
        return _LARGEST_LOSS * sum(self.sizes.values())

    def _share(self, *names: str) -> Fraction:
        """Return how much of all declared units some clients have."""
        return Fraction(sum(self.sizes[name] for name in names), sum(self.sizes.values()))

    def encode_statistics(self, sums: Arrays, name: str) -> Words:
        """Return a client's exact sums over features as words.

        Raises:
            PrivacyError: The run sums no features, or only with noise.
            NotFiniteError: They are not finite, or of far more images than the client declares.
        """
        self._check_exact()
        contribution = to_contribution(self._statistics, sums)
        # Encoding would shorten it, and the head would be another one than that of plain sums.
        if not fits(contribution, self.sizes[name]):
            raise NotFiniteError("the sums over features are not finite, or of far more images than were declared")
        return self.point.encode(contribution)

    def encode_update(self, update: Arrays, name: str) -> Words:
        """Return a client's weighted update as words.

        Raises:
            NotFiniteError: It is not finite, or too long for the ring. Nothing may be summed then.
            PrivacyError: The run's mechanism wants noise in it.
        """
        self._check_exact()
        values = to_vector(update, self.shapes)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.linalg.norm(values))
        # Encoding would shorten it. Without a clip in the run's settings this is another update than the plain one.
        if not norm <= LONGEST_UPDATE:
            raise NotFiniteError("training diverged: the update is not finite, or too long for a secure sum")
        return self._point(name, LONGEST_UPDATE).encode(values * float(self._share(name)))

    def _check_exact(self) -> None:
        # Without this check exact values would leave where noised ones are charged.
        if self.releases.mechanism.private:
            raise PrivacyError("exact sums are for runs without a mechanism only")

    def encode_counts(
        self, evaluation: Evaluation | None, *, server_round: int | None, name: str, stream: ByteStream | None = None
    ) -> Words:
        """Return a client's counts as words, the closing ones where the round is None.

        Where counts have noise in shares, `stream` has fresh bytes for this client's share.

        Raises:
            PrivacyError: Counts would leave without their noise.
            FederationError: The counts are not those that leave in this round, or one is too large.
        """
        keys = self._of_round(server_round)
        metrics = encode_evaluation(0, evaluation).metric_records[METRICS]
        # A model that has diverged has no loss. There is no word for that.
        if LOSS_SUM in keys:
            metrics.setdefault(LOSS_SUM, 0.0)
        if set(metrics) != {NUM_EXAMPLES, *keys}:
            raise FederationError("counts that are not those of the round were to be summed")
        # Without this check exact counts would leave where noised ones are charged.
        if self.counts_in_shares != (stream is not None):
            raise PrivacyError("counts may be summed only with the noise of the plan")
        if stream is None:
            return np.concatenate([self.ring.zeros(0), *(self._words(key, metrics[key], name) for key in keys)])
        parts = [self._noised_words(key, metrics[key], self.sizes[name], stream) for key in keys]
        return np.concatenate([self.ring.zeros(0), *parts])

    def _noised_words(self, key: str, value: object, num_units: int, stream: ByteStream) -> Words:
        counts = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if counts.shape != (self._size(key),):
            raise FederationError("counts of another number than agreed were to be summed")
        return share_words(counts, self._in_ring(self._counts_scale(key)), num_units=num_units, stream=stream)

    def _counts_scale(self, key: str) -> ShareScale:
        noise, shares = noise_of(key, None if self.plan is None else self.plan.counts)
        return counts_scale(noise, shares, total_units=sum(self.sizes.values()), num_clients=self.num_clients)

    def _words(self, key: str, value: object, name: str) -> Words:
        if key == LOSS_SUM:
            values = np.atleast_1d(np.asarray(value, dtype=np.float64))
            return self._point(name, self._largest_loss).encode(values)
        counts = np.atleast_1d(np.asarray(value, dtype=np.int64))
        # All clients may have as many, and the sum must not wrap.
        largest = (2 ** (self.ring.word_bits - 1) - 1) // self.num_clients
        if counts.shape != (self._size(key),) or (np.abs(counts) > largest).any():
            raise FederationError("counts of another number than agreed were to be summed")
        return self.ring.words_of(counts)

    def part_of_sum(self, words: Words) -> Words:
        """Return the words before the counts in a round's vector."""
        return words[: self._num_values]

    def summed_statistics(self, words: Words) -> Arrays:
        """Return the sums over features in a round's vector, added up over clients, float64.

        Raises:
            PrivacyError: The run sums no features.
        """
        kind, part = self._statistics, self.part_of_sum(words)
        values = self.point.decode(part) if self.plan is None else values_of_sum(part, self.gradient_scale)
        return from_contribution(kind, values, *self.shapes[HEAD_WEIGHT])

    def average_update(self, words: Words, survivors: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the survivors' average update, float64.

        It is weighted by their sizes, but for whole clients under noise: then it is their sum over the planned number.
        """
        part = self.part_of_sum(words)
        if self.plan is None:
            values = self.point.decode(part) / float(self._share(*survivors))
        else:
            # However many survived: the divisor of a noised sum depends on nothing that happened.
            values = values_of_sum(part, self.gradient_scale) / self.plan.expected_batch_size
        return from_vector(values, self.shapes)

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
                metrics[key] = float(self._point(None, self._largest_loss).decode(part)[0])
            else:
                values = self._whole_counts(key, part).tolist()
                metrics[key] = values[0] if key in (CORRECT, WRONG) else values
        summed = decode_evaluation(RecordDict({METRICS: metrics}), self.num_classes, self.releases.subgroups)
        if summed is None:
            return None
        noised, divided = summed.noised, summed.subgroups
        return replace(
            summed,
            noised=None if noised is None else replace(noised, num_clients=num_survivors),
            subgroups=None if divided is None else replace(divided, num_clients=num_survivors),
        )

    def _whole_counts(self, key: str, words: Words) -> np.ndarray:
        if not self.counts_in_shares:
            return self.ring.signed(words)
        # Whole numbers, as counts are. Rounding the noised sum is post-processing.
        whole: np.ndarray = np.rint(self.noised_counts(key, words))
        return whole.astype(np.int64)

    def noised_counts(self, key: str, words: Words) -> np.ndarray:
        """Return counts with noise in shares before they are rounded, float64."""
        return values_of_sum(words, self._in_ring(self._counts_scale(key)))

    def _of_round(self, server_round: int | None) -> tuple[str, ...]:
        if server_round is None:
            return self.releases.summed(closing=True)
        return self.releases.in_round(server_round).summed(closing=False)

    @property
    def _statistics(self) -> StatisticsKind:
        if self.releases.statistics is None:
            raise PrivacyError("the run sums no features")
        return self.releases.statistics

    @cached_property
    def _num_values(self) -> int:
        kind = self.releases.statistics
        shapes = self.shapes if kind is None else statistic_shapes(kind, *self.shapes[HEAD_WEIGHT])
        return sum(math.prod(shape) for shape in shapes.values())

    def _num_counts(self, keys: Iterable[str]) -> int:
        return sum(map(self._size, keys))

    def _size(self, key: str) -> int:
        return num_counts(key, self.num_classes, self.releases.subgroups)
