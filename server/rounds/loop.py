"""Loop over the rounds of a run, with any Flower strategy."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.errors import ClientFailure, FederationError
from common.messages.codec import Evaluation, arrays_to_record, record_to_arrays, run_config
from common.messages.fields import ARRAYS, METRICS, NUM_EXAMPLES
from common.messages.held_array import array_records_in, content_bytes, values_of
from common.metrics import Counts, total
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from server.aggregation.central_dp import noised_average
from server.aggregation.reply_spool import ReplySpool
from server.aggregation.weighted_mean import takes_a_mean, weighted_mean
from server.rounds.enrollment import EnrolledClient
from server.rounds.messaging import DECIDED, NOT_FINITE, wait_for_nodes
from server.rounds.replies import AcceptedReplies, Channel, ReplyCollector
from server.rounds.round_record import RoundRecord
from server.rounds.secure_rounds import OpenedSum, SecureRounds
from server.rounds.update_filter import OUTLIER, drop_outliers, update_norm

Evaluate = Callable[[Arrays], Counts | None]
# (clients in the sums over features, sums of each or of all together) -> head that follows from them.
SolveHead = Callable[[Sequence[str], Iterable[Arrays]], Arrays]
# After so many skipped rounds in a row the run stops. It can be resumed when the clients are back.
_MAX_SKIPPED = 3
# Failures that a second try would only repeat.
_FINAL = (*DECIDED, ClientFailure.MESSAGE.name, NOT_FINITE, OUTLIER)


@dataclass(frozen=True)
class RoundResult:
    """Result of a round, a model and the round's record."""

    arrays: Arrays
    record: RoundRecord


@dataclass(frozen=True)
class RoundSettings:
    """Clients, cohorts and limits of a run's rounds.

    Attributes:
        clients: Clients by name.
        cohorts: Names of each round's clients, from round 1.
        min_clients: With fewer accepted updates a round is tried again, and then skipped.
        central: Clipping bound and noise at the server; None where clients add noise, or nobody does.
        evaluate: Scores a model outside every client; simulations only.
        public_test: Returns a model's figures on the server's own public images.
        public_every: A round's model is evaluated on these if its number is a multiple of this.
        retries: How often a round is tried again before it is skipped.
        max_update_norm: Longest accepted update, in weight units; None compares with the round's median alone.
        skipped_before: Of each earlier round of a resumed run, whether it was skipped.
        secure: Opens each round's sum, where the server sees no single update; None where updates come one by one.
        before_round: Called with each round's number before it starts; may add late clients.
        solve: Makes the model from the sums that clients send; None where they send models.
        stream: Makes the stream of the server's noise. Production code never sets it; None is fresh keys.
        folder: Folder on whose disk a round's replies lie that memory has no room for.
    """

    clients: Mapping[str, EnrolledClient]
    cohorts: Sequence[Sequence[str]]
    min_clients: int = 1
    central: PrivacyPlan | None = None
    evaluate: Evaluate | None = None
    public_test: Callable[[Arrays], Mapping[str, Any]] | None = None
    public_every: int = 1
    retries: int = 0
    max_update_norm: float | None = None
    skipped_before: Sequence[bool] = ()
    secure: SecureRounds | None = None
    before_round: Callable[[int], None] = lambda _: None
    solve: SolveHead | None = None
    stream: Callable[[], ByteStream] | None = None
    folder: Path | None = None

    @property
    def filters_outliers(self) -> bool:
        """True if updates that are far longer than others are left out."""
        # The filter compares clients with each other. Before noise at the server this would let one client
        # decide whether another is counted, and the sensitivity would be more than one clipping bound.
        # Sums over features are no update, and their lengths follow from the clients' sizes.
        return self.central is None and self.solve is None and self.secure is None


def run_rounds(
    channel: Channel, strategy: Strategy, arrays: Arrays, settings: RoundSettings, *, first: int = 1
) -> Iterator[RoundResult]:
    """Run one round for each cohort and yield its result.

    A caller that stops early, or is interrupted inside a round, keeps what was yielded so far. A client whose reply is
    late or fails a check is left out of its round and counts as a failure. A round with too few updates is tried again,
    with the same request and only at the clients that failed. A client that has answered would repeat the same bytes
    and is not charged twice. Then the round is skipped and the model does not change. A resumed run begins at round
    `first`.

    Raises:
        FederationError: Three rounds in a row, or all rounds, got too few updates.
    """
    spool = ReplySpool(settings.folder)
    skipped, released, last = 0, not all(settings.skipped_before), len(settings.cohorts)
    for number in range(first, last + 1):
        settings.before_round(number)
        started = time.perf_counter()
        spool.empty()
        exchange = _Exchange(channel, strategy, arrays, settings, number, spool)
        if len(exchange.accepted) < settings.min_clients or not exchange.open_sum(arrays, settings):
            skipped += 1
            if skipped == _MAX_SKIPPED or (number == last and not released):
                raise FederationError(_too_few(exchange, settings))
            record = _record(exchange, settings, None, started)
            exchange.drop_replies()
            yield RoundResult(arrays, record)
            continue
        merged = _aggregate(strategy, number, arrays, exchange, settings)
        if merged is None:
            raise FederationError(f"round {number}: the strategy could not aggregate {len(exchange.accepted)} updates")
        # After noise at the server the model is released anyway, so this check could not take it back.
        if settings.central is None and not all(np.isfinite(array).all() for array in merged.values()):
            raise FederationError(f"round {number}: the strategy made a model that is not finite; it was not kept")
        arrays, skipped, released = merged, 0, True
        record = _record(exchange, settings, arrays, started)
        exchange.drop_replies()
        yield RoundResult(arrays, record)


class _Exchange:
    """Training messages of one round and their replies, retries included."""

    def __init__(
        self,
        channel: Channel,
        strategy: Strategy,
        arrays: Arrays,
        settings: RoundSettings,
        number: int,
        spool: ReplySpool,
    ) -> None:
        self.number = number
        self.accepted: AcceptedReplies = {}
        self.failures: dict[str, str] = {}
        self.lost_after: dict[str, str] = {}
        self.opened: OpenedSum | None = None
        cohort = {name: settings.clients[name] for name in settings.cohorts[number - 1]}
        num_bytes = None
        if settings.secure is not None:
            cohort, num_bytes = settings.secure.reachable(cohort), settings.secure.num_bytes(number)
        self._channel, self._cohort = replace(channel, releases=channel.releases.in_round(number)), cohort
        measure = partial(update_norm, arrays) if settings.filters_outliers else None
        collector = ReplyCollector(
            self._channel, cohort, arrays, num_bytes, server_round=number, measure=measure, spool=spool
        )
        messages: list[Message] = []
        if collector.nodes:
            config = run_config(channel.run_id)
            messages = list(strategy.configure_train(number, arrays_to_record(arrays), config, collector.cohort_grid))
        self._messages = messages
        self.bytes_down = _mean(content_bytes(message.content) for message in messages)
        self._ask(collector, messages, arrays, settings)
        for _ in range(settings.retries):
            if len(self.accepted) >= settings.min_clients:
                break
            seconds = channel.reply_seconds or 0.0
            with channel.waiting.during("reconnect", collector.nodes, seconds=seconds, server_round=number) as heard:
                wait_for_nodes(channel.grid, collector.nodes, settings.min_clients, seconds=seconds, heard=heard)
            again = {node for name, node in collector.nodes.items() if self.failures.get(name) not in (None, *_FINAL)}
            repeated = [_copy(message) for message in messages if message.metadata.dst_node_id in again]
            self._ask(collector, repeated, arrays, settings)
        self.bytes_up = _mean(collector.received[name] for name in self.accepted)

    def open_sum(self, arrays: Arrays, settings: RoundSettings) -> bool:
        """Open the sum of a secure round and return whether there is an aggregate.

        Plain updates need no opening.
        """
        if settings.secure is None:
            return True
        asked = self._messages[0].content
        self.opened = settings.secure.open(
            self._channel, self._cohort, asked, self.accepted, arrays, server_round=self.number
        )
        if self.opened is None:
            return False
        # Their updates are in the sum, so they are not missing from the model.
        self.lost_after = {name: code for name, code in sorted(self.opened.failures.items()) if name in self.accepted}
        self.bytes_up += self.opened.bytes_up
        return True

    def drop_replies(self) -> None:
        """Drop all that the replies hold."""
        # Flower's messages refer to themselves. Without this the replies of two rounds could be in memory together.
        for reply, _ in self.accepted.values():
            reply.content.clear()

    def evaluations(self) -> list[Evaluation]:
        """Return the counts that came, of each client or of their sum."""
        if self.opened is not None:
            return [] if self.opened.evaluation is None else [self.opened.evaluation]
        return [part for _, part in self.accepted.values() if part is not None]

    def _ask(
        self, collector: ReplyCollector, messages: Sequence[Message], arrays: Arrays, settings: RoundSettings
    ) -> None:
        accepted, failed = collector.replies(messages)
        self.accepted = dict(sorted((self.accepted | accepted).items()))
        self.failures = {name: code for name, code in (self.failures | failed).items() if name not in self.accepted}
        if settings.filters_outliers:
            most = settings.max_update_norm
            drop_outliers(self.accepted, self.failures, collector.norms, arrays, max_update_norm=most)
        self.failures = dict(sorted(self.failures.items()))


def _copy(message: Message) -> Message:
    metadata = message.metadata
    return Message(message.content.copy(), metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)


def _record(exchange: _Exchange, settings: RoundSettings, arrays: Arrays | None, started: float) -> RoundRecord:
    """Return the record of a round, a skipped one where the model is None."""
    evaluate = settings.evaluate if arrays is not None else None
    public_test = settings.public_test if exchange.number % settings.public_every == 0 else None
    # Counts of fewer than `min_clients` clients are not published.
    evaluations = [] if arrays is None else exchange.evaluations()
    return RoundRecord(
        server_round=exchange.number,
        num_clients=len(exchange.accepted),
        failures=exchange.failures,
        lost_after=exchange.lost_after,
        counts=evaluate(arrays) if evaluate and arrays is not None else total(_present(evaluations, "counts")),
        personal=total(_present(evaluations, "personal")),
        noised=total(_present(evaluations, "noised")),
        simulation_only=evaluate is not None,
        seconds=time.perf_counter() - started,
        bytes_up=exchange.bytes_up,
        bytes_down=exchange.bytes_down,
        skipped=arrays is None,
        public_test=public_test(arrays) if public_test and arrays is not None else None,
    )


def _present(evaluations: Sequence[Evaluation], name: str) -> list[Any]:
    return [value for value in (getattr(evaluation, name) for evaluation in evaluations) if value is not None]


def _too_few(exchange: _Exchange, settings: RoundSettings) -> str:
    causes = ", ".join(sorted(set(exchange.failures.values()))) or "no client answered"
    diverged = {NOT_FINITE, OUTLIER} & set(exchange.failures.values())
    return (
        f"round {exchange.number}: {len(exchange.accepted)} clients sent an update, and {settings.min_clients} are "
        f"needed ({causes}); it was tried {1 + settings.retries} times"
        + ("\n  training diverged: lower training.learning-rate, to a tenth or less" if diverged else "")
    )


def _aggregate(
    strategy: Strategy, number: int, arrays: Arrays, exchange: _Exchange, settings: RoundSettings
) -> Arrays | None:
    if settings.solve is not None:
        # Sorted by name, because the order of the clients decides the last bits.
        accepted, opened = exchange.accepted, exchange.opened
        replies = [reply for reply, _ in accepted.values()]
        # Read one by one, because those of many clients may lie in a file.
        sums = map(_sums_in, replies) if opened is None else [opened.arrays]
        return settings.solve(list(accepted), sums)
    messages = [reply for reply, _ in exchange.accepted.values()]
    if exchange.opened is not None:
        messages = [_as_one_message(messages, exchange.opened.arrays)]
    if settings.central is not None:
        # A fresh stream a round, because noise that is used twice could be subtracted.
        stream = SecureStream() if settings.stream is None else settings.stream()
        messages = [_noised_message(messages, arrays, settings.central, stream)]
    if len(messages) > 1 and takes_a_mean(strategy):
        messages = [_mean_message(messages)]
    merged, _ = strategy.aggregate_train(number, messages)
    return None if merged is None else record_to_arrays(merged)


def _sums_in(reply: Message) -> Arrays:
    """Return the sums of a reply, float64."""
    return {name: values_of(array) for name, array in array_records_in(reply.content)[ARRAYS].items()}


def _model_in(reply: Message) -> Arrays:
    """Return the model of a reply, float32."""
    return record_to_arrays(array_records_in(reply.content)[ARRAYS])


def _mean_message(messages: Sequence[Message]) -> Message:
    """Return the weighted mean of all replies as a single client's message."""
    contents = [message.content for message in messages]
    weights = [int(content.metric_records[METRICS][NUM_EXAMPLES]) for content in contents]  # type: ignore[arg-type]
    records = [array_records_in(content)[ARRAYS] for content in contents]
    return _as_one_message(messages, weighted_mean(records, weights))


def _noised_message(messages: Sequence[Message], arrays: Arrays, central: PrivacyPlan, stream: ByteStream) -> Message:
    """Return the noised average as a single client's message for any strategy."""
    # Read one by one, because those of many clients may lie in a file.
    ended = map(_model_in, messages)
    return _as_one_message(messages, noised_average(arrays, ended, central, stream=stream))


def _as_one_message(messages: Sequence[Message], average: Arrays) -> Message:
    # The weight of a single message is divided by itself, whatever it is, so it must not be 0.
    metrics = MetricRecord({NUM_EXAMPLES: 1})
    return Message(RecordDict({ARRAYS: arrays_to_record(average), METRICS: metrics}), reply_to=messages[0])


def _mean(sizes: Iterable[int]) -> float:
    counted = list(sizes)
    return sum(counted) / max(1, len(counted))
