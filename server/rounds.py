"""The loop over any Flower strategy: cohorts by name, replies in a fixed order."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy

from common.errors import FederationError
from common.metrics import Counts, total
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from common.records import CONFIG, Findings, arrays_to_record, record_to_arrays, run_config
from common.releases import ARRAYS, METRICS
from server.central_noise import noised_average
from server.gathering import Gathering, Usable, Wire
from server.meeting import Client
from server.tracking import RoundRecord

Arrays = dict[str, np.ndarray]
Evaluate = Callable[[Arrays], Counts | None]
Closing = dict[str, Findings]


@dataclass(frozen=True)
class RoundResult:
    """The model after a round, and the record of it."""

    arrays: Arrays
    record: RoundRecord


@dataclass(frozen=True)
class Course:
    """What a run's rounds are made of.

    Attributes:
        clients: By name.
        cohorts: Names of each round's clients, from round 1.
        min_clients: A round with fewer usable updates does not count, and ends the run.
        central: Clip bound and noise at the server; None where clients protect themselves, or nobody is.
        evaluate: Scores a model outside every client; simulations only.
    """

    clients: Mapping[str, Client]
    cohorts: Sequence[Sequence[str]]
    min_clients: int = 1
    central: PrivacyPlan | None = None
    evaluate: Evaluate | None = None


def run_rounds(
    wire: Wire, strategy: Strategy, arrays: Arrays, course: Course, *, first: int = 1
) -> Iterator[RoundResult]:
    """Run one round for each cohort and yield after each.

    A caller that stops early, or is interrupted inside a round, keeps what was
    yielded so far: a round counts when it is complete. A client whose reply is not
    what was agreed is left out of its round, update and counts, as a failure.

    Args:
        wire: How messages go out, and what may come back.
        strategy: Any Flower strategy.
        arrays: Weights before the first round.
        course: Clients, cohorts and what happens at the server.
        first: Number of the first round, from 1; later where a run is resumed.

    Raises:
        FederationError: Fewer clients of a cohort than the run needs sent a usable update.
    """
    for number in range(first, len(course.cohorts) + 1):
        started = time.perf_counter()
        cohort = {name: course.clients[name] for name in course.cohorts[number - 1]}
        gather = Gathering(wire, cohort, {name: array.shape for name, array in arrays.items()})
        config = run_config(wire.run_id)
        messages = list(strategy.configure_train(number, arrays_to_record(arrays), config, gather.view))
        replies, failures = gather.replies(messages)
        if len(replies) < max(1, course.min_clients):
            raise FederationError(
                f"round {number}: {len(replies)} clients sent an update, and {max(1, course.min_clients)} are needed "
                f"({_causes(failures)})"
            )
        down, up = _mean_bytes(messages), _mean_bytes([reply for reply, _ in replies.values()])
        arrays = _aggregate(strategy, number, arrays, replies, course.central)
        found = [findings for _, findings in replies.values() if findings is not None]
        evaluate = course.evaluate
        yield RoundResult(
            arrays,
            RoundRecord(
                server_round=number,
                num_clients=len(replies),
                failures=failures,
                counts=evaluate(arrays) if evaluate else total(_of(found, "counts")),
                personal=total(_of(found, "personal")),
                noised=total(_of(found, "noised")),
                simulation_only=evaluate is not None,
                seconds=time.perf_counter() - started,
                bytes_up=up,
                bytes_down=down,
            ),
        )


def _of(findings: Sequence[Findings], name: str) -> list[Any]:
    return [value for value in (getattr(found, name) for found in findings) if value is not None]


def _aggregate(strategy: Strategy, number: int, arrays: Arrays, replies: Usable, central: PrivacyPlan | None) -> Arrays:
    messages = [reply for reply, _ in replies.values()]
    if central is not None:
        messages = [_as_one(messages, arrays, central)]
    merged, _ = strategy.aggregate_train(number, messages)
    if merged is None:
        raise FederationError(f"round {number}: the strategy could not aggregate {len(replies)} updates")
    return record_to_arrays(merged)


def _as_one(messages: Sequence[Message], arrays: Arrays, central: PrivacyPlan) -> Message:
    """The noised average as if one client had sent it: what a strategy makes of it costs no privacy."""
    ended = [record_to_arrays(message.content.array_records[ARRAYS]) for message in messages]
    average = noised_average(arrays, ended, central, stream=SecureStream())
    metrics = messages[0].content.metric_records[METRICS]
    return Message(RecordDict({ARRAYS: arrays_to_record(average), METRICS: metrics}), reply_to=messages[0])


def evaluate_at_clients(
    wire: Wire, strategy: Strategy, arrays: Arrays, clients: Mapping[str, Client], server_round: int
) -> Closing:
    """One evaluate message to every client: the closing counts, exact or noised.

    Args:
        wire: How messages go out, and what may come back.
        strategy: Any Flower strategy.
        arrays: The model that travels.
        clients: By name.
        server_round: Number of the last round.

    Returns:
        Findings by client name; clients that failed are left out.
    """
    gather = Gathering(wire, clients, {name: array.shape for name, array in arrays.items()})
    config = run_config(wire.run_id)
    messages = strategy.configure_evaluate(server_round, arrays_to_record(arrays), config, gather.view)
    replies, _ = gather.replies(list(messages))
    return {name: findings for name, (_, findings) in replies.items() if findings is not None}


def close_at_clients(wire: Wire, clients: Mapping[str, Client]) -> None:
    """Tell every client that nothing more will be asked in this run; who does not hear it loses nothing.

    Args:
        wire: How messages go out.
        clients: By name.
    """
    gather = Gathering(wire, clients, {})
    content = RecordDict({CONFIG: run_config(wire.run_id)})
    gather.replies([Message(content.copy(), client.node_id, "query.close") for client in clients.values()])


def _causes(failures: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(failures.values()))) or "nobody answered"


def _mean_bytes(messages: Sequence[Message]) -> float:
    total_bytes = sum(record.count_bytes() for message in messages for record in message.content.values())
    return total_bytes / max(1, len(messages))
