"""The loop over any Flower strategy: cohorts by name, replies in a fixed order."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.errors import FederationError
from common.metrics import Counts, total
from common.records import Declaration, arrays_to_record, decode_counts, decode_declaration, record_to_arrays
from server.cohort import CohortGrid
from server.tracking import RoundRecord

Arrays = dict[str, np.ndarray]
Evaluate = Callable[[Arrays], Counts | None]


@dataclass(frozen=True)
class Client:
    """One client of this run: what it declared, and where Flower reaches it."""

    declaration: Declaration
    node_id: int


@dataclass(frozen=True)
class RoundResult:
    """The model after a round, and the record of it."""

    arrays: Arrays
    record: RoundRecord


def meet_clients(
    grid: Grid, num_clients: int, *, poll_seconds: float = 0.5, wait_seconds: float = 120.0
) -> dict[str, Client]:
    """Wait for all clients, ask each to declare itself, and check that they agree.

    Args:
        grid: Any Flower grid.
        num_clients: How many clients the run is configured for.
        poll_seconds: Pause between looks while some are missing.
        wait_seconds: How long to wait for them.

    Returns:
        Clients by name, sorted.

    Raises:
        FederationError: Too few clients came, a client failed, two have one name, or they disagree on
            classes, input shape or backbone.
    """
    deadline = time.monotonic() + wait_seconds
    while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() > deadline:
            raise FederationError(
                f"num-clients={num_clients} but only {len(node_ids)} nodes are there after {wait_seconds:.0f} s; with "
                f"`flwr run`, pass --federation-config num-supernodes={num_clients}"
            )
        time.sleep(poll_seconds)
    queries = [Message(RecordDict(), node, MessageType.QUERY) for node in node_ids]
    clients: dict[str, Client] = {}
    for reply in grid.send_and_receive(queries):
        if reply.has_error():
            raise FederationError(f"a client could not declare itself: {reply.error.reason}; its own log says more")
        declared = decode_declaration(reply.content)
        if declared.name in clients:
            raise FederationError(f"two clients call themselves {declared.name!r}")
        clients[declared.name] = Client(declared, reply.metadata.src_node_id)
    if len(clients) < num_clients:
        raise FederationError(f"only {len(clients)} of {num_clients} clients declared themselves")
    _check_agreement([client.declaration for client in clients.values()])
    return dict(sorted(clients.items()))


def _check_agreement(declarations: Sequence[Declaration]) -> None:
    first = declarations[0]
    for other in declarations[1:]:
        for field in ("classes", "input_shape", "backbone_hash"):
            if getattr(other, field) != getattr(first, field):
                raise FederationError(f"clients {first.name} and {other.name} disagree on {field}")


def run_rounds(
    grid: Grid,
    strategy: Strategy,
    arrays: Arrays,
    clients: Mapping[str, Client],
    cohorts: Sequence[Sequence[str]],
    *,
    evaluate: Evaluate | None = None,
) -> Iterator[RoundResult]:
    """Run one round for each cohort and yield after each.

    A caller that stops early, or is interrupted inside a round, keeps what was
    yielded so far: a round counts when it is complete.

    Args:
        grid: Any Flower grid.
        strategy: Any Flower strategy.
        arrays: Starting weights.
        clients: By name.
        cohorts: Names of each round's clients, from round 1.
        evaluate: Scores a model outside every client; simulations only.

    Raises:
        FederationError: No client of a cohort sent a usable update.
    """
    num_classes = _num_classes(clients)
    for number, cohort in enumerate(cohorts, start=1):
        started = time.perf_counter()
        names = {clients[name].node_id: name for name in cohort}
        view = CohortGrid(grid, names)
        messages = list(strategy.configure_train(number, arrays_to_record(arrays), ConfigRecord(), view))
        replies, failures = _gather(view, messages, names)
        if not replies:
            raise FederationError(f"round {number}: no client sent an update ({_causes(failures)})")
        down, up = _mean_bytes(messages), _mean_bytes(replies)
        merged, _ = strategy.aggregate_train(number, replies)
        if merged is None:
            raise FederationError(f"round {number}: the strategy could not aggregate the updates")
        arrays = record_to_arrays(merged)
        counts = evaluate(arrays) if evaluate else _counts(replies, num_classes)
        yield RoundResult(
            arrays,
            RoundRecord(
                server_round=number,
                num_clients=len(replies),
                failures=failures,
                counts=counts,
                simulation_only=evaluate is not None,
                seconds=time.perf_counter() - started,
                bytes_up=up,
                bytes_down=down,
            ),
        )


def evaluate_at_clients(
    grid: Grid, strategy: Strategy, arrays: Arrays, clients: Mapping[str, Client], server_round: int
) -> dict[str, Counts]:
    """One evaluate message to every client: the closing counts, without privacy only.

    Returns:
        Counts by client name; clients that failed are left out.
    """
    names = {client.node_id: name for name, client in clients.items()}
    view = CohortGrid(grid, names)
    messages = strategy.configure_evaluate(server_round, arrays_to_record(arrays), ConfigRecord(), view)
    replies, _ = _gather(view, list(messages), names)
    found = {
        names[reply.metadata.src_node_id]: decode_counts(reply.content, _num_classes(clients)) for reply in replies
    }
    return {name: counts for name, counts in found.items() if counts is not None}


def _gather(grid: Grid, messages: list[Message], names: Mapping[int, str]) -> tuple[list[Message], dict[str, str]]:
    """Replies sorted by client name, so that sums of floats do not depend on arrival."""
    replies = sorted(grid.send_and_receive(messages), key=lambda reply: names[reply.metadata.src_node_id])
    failed = {names[reply.metadata.src_node_id]: str(reply.error.reason) for reply in replies if reply.has_error()}
    return [reply for reply in replies if not reply.has_error()], failed


def _num_classes(clients: Mapping[str, Client]) -> int:
    return len(next(iter(clients.values())).declaration.classes)


def _causes(failures: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(failures.values()))) or "nobody answered"


def _counts(replies: list[Message], num_classes: int) -> Counts | None:
    found = [decode_counts(reply.content, num_classes) for reply in replies]
    return total(counts for counts in found if counts is not None)


def _mean_bytes(messages: list[Message]) -> float:
    total = sum(record.count_bytes() for message in messages for record in message.content.values())
    return total / max(1, len(messages))
