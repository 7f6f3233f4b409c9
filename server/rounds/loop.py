"""The loop over any Flower strategy: cohorts by name, replies in a fixed order."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy

from common.errors import ClientFailure, FederationError
from common.messages.codec import CONFIG, Evaluation, arrays_to_record, record_to_arrays, run_config
from common.messages.fields import ARRAYS, METRICS
from common.metrics import Counts, total
from common.privacy.noise import SecureStream, UniformStream
from common.privacy.plan import PrivacyPlan
from server.aggregation.central_dp import noised_average
from server.rounds.enrollment import Client
from server.rounds.messaging import DECIDED, wait_for_nodes
from server.rounds.replies import AcceptedReplies, Channel, ReplyCollector
from server.rounds.round_record import RoundRecord
from server.rounds.update_filter import OUTLIER, drop_outliers

Arrays = dict[str, np.ndarray]
Evaluate = Callable[[Arrays], Counts | None]
Closing = dict[str, Evaluation]
# So many rounds without an update in a row are no accident: the run stops, and can be resumed when they are back.
_MOST_SKIPPED = 3
# Asking again would bring the same answer.
_FINAL = (*DECIDED, ClientFailure.MESSAGE.name, OUTLIER)


@dataclass(frozen=True)
class RoundResult:
    """The model after a round, and the record of it."""

    arrays: Arrays
    record: RoundRecord


@dataclass(frozen=True)
class RoundSettings:
    """What a run's rounds are made of.

    Attributes:
        clients: By name.
        cohorts: Names of each round's clients, from round 1.
        min_clients: A round with fewer usable updates is not released: it is tried again, and then skipped.
        central: Clip bound and noise at the server; None where clients protect themselves, or nobody is.
        evaluate: Scores a model outside every client; simulations only.
        seconds: How long a round waits for updates; None waits for all.
        retries: How often a round is tried again before it is skipped.
        max_update_norm: Longest update, in weight units, that is taken; None compares with the round's median alone.
        before: Of each earlier round of a run that is resumed, whether it was skipped.
        before_round: Called with each round's number before it, for clients that come late.
        stream: Makes the stream of the server's noise. Production code never sets it; None is fresh keys.
    """

    clients: Mapping[str, Client]
    cohorts: Sequence[Sequence[str]]
    min_clients: int = 1
    central: PrivacyPlan | None = None
    evaluate: Evaluate | None = None
    seconds: float | None = None
    retries: int = 0
    max_update_norm: float | None = None
    before: Sequence[bool] = ()
    before_round: Callable[[int], None] = lambda _: None
    stream: Callable[[], UniformStream] | None = None


def run_rounds(
    channel: Channel, strategy: Strategy, arrays: Arrays, settings: RoundSettings, *, first: int = 1
) -> Iterator[RoundResult]:
    """Run one round for each cohort and yield after each.

    A caller that stops early, or is interrupted inside a round, keeps what was
    yielded so far: a round counts when it is complete. A client whose reply is not
    what was agreed, or comes too late, is left out of its round, update and counts,
    as a failure. A round with too few updates is tried again, with the same request
    and only those that failed: a client that has answered answers with the same bytes
    and is not charged twice. Then it is skipped, and the model stays as it was.

    Args:
        channel: How messages go out, and what may come back.
        strategy: Any Flower strategy.
        arrays: Weights before the first round.
        settings: Clients, cohorts and what happens at the server.
        first: Number of the first round, from 1; later where a run is resumed.

    Raises:
        FederationError: Three rounds in a row, or all there are, got too few updates.
    """
    skipped, released, last = 0, not all(settings.before), len(settings.cohorts)
    for number in range(first, last + 1):
        settings.before_round(number)
        started = time.perf_counter()
        sent = _Round(channel, strategy, arrays, settings, number)
        if len(sent.good) < settings.min_clients:
            skipped += 1
            if skipped == _MOST_SKIPPED or (number == last and not released):
                raise FederationError(_too_few(sent, settings))
            yield RoundResult(arrays, _record(sent, settings, None, started))
            continue
        merged = _aggregate(strategy, number, arrays, sent.good, settings)
        if merged is None:
            raise FederationError(f"round {number}: the strategy could not aggregate {len(sent.good)} updates")
        if settings.central is None and not all(np.isfinite(array).all() for array in merged.values()):
            raise FederationError(f"round {number}: the strategy made a model that is not finite; it was not kept")
        arrays, skipped, released = merged, 0, True
        yield RoundResult(arrays, _record(sent, settings, arrays, started))


class _Round:
    """Sends one round's messages until enough can be used, or it has been tried often enough."""

    def __init__(
        self, channel: Channel, strategy: Strategy, arrays: Arrays, settings: RoundSettings, number: int
    ) -> None:
        self.number = number
        self.good: AcceptedReplies = {}
        self.failures: dict[str, str] = {}
        cohort = {name: settings.clients[name] for name in settings.cohorts[number - 1]}
        gather = ReplyCollector(channel, cohort, {name: array.shape for name, array in arrays.items()})
        config = run_config(channel.run_id)
        messages = (
            list(strategy.configure_train(number, arrays_to_record(arrays), config, gather.view))
            if gather.nodes
            else []
        )
        self.bytes_down = _mean_bytes(messages)
        self._ask(gather, messages, arrays, settings)
        for _ in range(settings.retries):
            if len(self.good) >= settings.min_clients:
                break
            wait_for_nodes(channel.grid, gather.nodes, settings.min_clients, seconds=settings.seconds or 0.0)
            again = {node for name, node in gather.nodes.items() if self.failures.get(name) not in (None, *_FINAL)}
            self._ask(gather, [_again(one) for one in messages if one.metadata.dst_node_id in again], arrays, settings)
        self.bytes_up = _mean_bytes([reply for reply, _ in self.good.values()])

    def _ask(
        self, gather: ReplyCollector, messages: Sequence[Message], arrays: Arrays, settings: RoundSettings
    ) -> None:
        good, failed = gather.replies(messages, seconds=settings.seconds)
        self.good = dict(sorted((self.good | good).items()))
        self.failures = {name: why for name, why in (self.failures | failed).items() if name not in self.good}
        if settings.central is None:  # before noise at the server no client may have a say in another's share
            drop_outliers(self.good, self.failures, arrays, max_update_norm=settings.max_update_norm)
        self.failures = dict(sorted(self.failures.items()))


def _again(message: Message) -> Message:
    metadata = message.metadata
    return Message(message.content.copy(), metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)


def _record(sent: _Round, settings: RoundSettings, arrays: Arrays | None, started: float) -> RoundRecord:
    """What is known of a round; of one that was skipped, only who failed and how."""
    found = [evaluation for _, evaluation in sent.good.values() if evaluation is not None] if arrays is not None else []
    evaluate = settings.evaluate if arrays is not None else None
    return RoundRecord(
        server_round=sent.number,
        num_clients=len(sent.good),
        failures=sent.failures,
        counts=evaluate(arrays) if evaluate and arrays is not None else total(_of(found, "counts")),
        personal=total(_of(found, "personal")),
        noised=total(_of(found, "noised")),
        simulation_only=evaluate is not None,
        seconds=time.perf_counter() - started,
        bytes_up=sent.bytes_up,
        bytes_down=sent.bytes_down,
        skipped=arrays is None,
    )


def _too_few(sent: _Round, settings: RoundSettings) -> str:
    return (
        f"round {sent.number}: {len(sent.good)} clients sent an update, and {settings.min_clients} are needed "
        f"({_causes(sent.failures)}); it was tried {1 + settings.retries} times"
    )


def _of(evaluation: Sequence[Evaluation], name: str) -> list[Any]:
    return [value for value in (getattr(found, name) for found in evaluation) if value is not None]


def _aggregate(
    strategy: Strategy, number: int, arrays: Arrays, replies: AcceptedReplies, settings: RoundSettings
) -> Arrays | None:
    messages = [reply for reply, _ in replies.values()]
    if settings.central is not None:
        stream = SecureStream() if settings.stream is None else settings.stream()
        messages = [_as_one(messages, arrays, settings.central, stream)]
    merged, _ = strategy.aggregate_train(number, messages)
    return None if merged is None else record_to_arrays(merged)


def _as_one(messages: Sequence[Message], arrays: Arrays, central: PrivacyPlan, stream: UniformStream) -> Message:
    """The noised average as if one client had sent it: what a strategy makes of it costs no privacy."""
    ended = [record_to_arrays(message.content.array_records[ARRAYS]) for message in messages]
    average = noised_average(arrays, ended, central, stream=stream)
    metrics = messages[0].content.metric_records[METRICS]
    return Message(RecordDict({ARRAYS: arrays_to_record(average), METRICS: metrics}), reply_to=messages[0])


def evaluate_at_clients(
    channel: Channel,
    strategy: Strategy,
    arrays: Arrays,
    clients: Mapping[str, Client],
    server_round: int,
    *,
    seconds: float | None = None,
) -> tuple[Closing, dict[str, str]]:
    """One evaluate message to every client: the closing counts, exact or noised.

    Args:
        channel: How messages go out, and what may come back.
        strategy: Any Flower strategy.
        arrays: The model that travels.
        clients: By name.
        server_round: Number of the last round.
        seconds: How long to wait; None waits for all.

    Returns:
        Findings by client name, and why other clients are missing.
    """
    gather = ReplyCollector(channel, clients, {name: array.shape for name, array in arrays.items()})
    config = run_config(channel.run_id)
    if not gather.nodes:
        return {}, gather.replies([])[1]
    messages = strategy.configure_evaluate(server_round, arrays_to_record(arrays), config, gather.view)
    replies, failures = gather.replies(list(messages), seconds=seconds)
    return {name: evaluation for name, (_, evaluation) in replies.items() if evaluation is not None}, failures


def close_at_clients(channel: Channel, clients: Mapping[str, Client], *, seconds: float | None = None) -> None:
    """Tell every client that nothing more will be asked in this run; who does not hear it loses nothing.

    Args:
        channel: How messages go out.
        clients: By name.
        seconds: How long to wait; None waits for all.
    """
    gather = ReplyCollector(channel, clients, {})
    content = RecordDict({CONFIG: run_config(channel.run_id)})
    messages = [Message(content.copy(), node, "query.close") for node in gather.nodes.values()]
    gather.replies(messages, seconds=seconds)


def _causes(failures: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(failures.values()))) or "nobody answered"


def _mean_bytes(messages: Sequence[Message]) -> float:
    total_bytes = sum(record.count_bytes() for message in messages for record in message.content.values())
    return total_bytes / max(1, len(messages))
