"""The loop over any Flower strategy: cohorts by name, replies in a fixed order."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.errors import ClientFailure, FederationError
from common.metrics import Counts, total
from common.records import (
    Declaration,
    Findings,
    arrays_to_record,
    check_reply,
    decode_declaration,
    record_to_arrays,
)
from common.releases import Releases
from server.cohort import CohortGrid
from server.tracking import RoundRecord

Arrays = dict[str, np.ndarray]
Evaluate = Callable[[Arrays], Counts | None]
Closing = dict[str, Findings]
_log = logging.getLogger("bract.server")


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
    releases: Releases,
    evaluate: Evaluate | None = None,
) -> Iterator[RoundResult]:
    """Run one round for each cohort and yield after each.

    A caller that stops early, or is interrupted inside a round, keeps what was
    yielded so far: a round counts when it is complete. A client whose reply is not
    what was agreed is left out of its round, update and counts, as a failure.

    Args:
        grid: Any Flower grid.
        strategy: Any Flower strategy.
        arrays: Starting weights.
        clients: By name.
        cohorts: Names of each round's clients, from round 1.
        releases: What replies carry.
        evaluate: Scores a model outside every client; simulations only.

    Raises:
        FederationError: No client of a cohort sent a usable update.
    """
    for number, cohort in enumerate(cohorts, start=1):
        started = time.perf_counter()
        gather = _Gathering(grid, {clients[name].node_id: (name, clients[name]) for name in cohort}, releases, arrays)
        messages = list(strategy.configure_train(number, arrays_to_record(arrays), ConfigRecord(), gather.view))
        replies, failures = gather.replies(messages)
        if not replies:
            raise FederationError(f"round {number}: no client sent an update ({_causes(failures)})")
        down, up = _mean_bytes(messages), _mean_bytes([reply for reply, _ in replies.values()])
        merged, _ = strategy.aggregate_train(number, [reply for reply, _ in replies.values()])
        if merged is None:
            raise FederationError(
                f"round {number}: the strategy could not aggregate {len(replies)} updates of {len(cohort)} clients"
            )
        arrays = record_to_arrays(merged)
        found = [findings for _, findings in replies.values() if findings is not None]
        yield RoundResult(
            arrays,
            RoundRecord(
                server_round=number,
                num_clients=len(replies),
                failures=failures,
                counts=evaluate(arrays) if evaluate else total(findings.counts for findings in found),
                personal=total(findings.personal for findings in found if findings.personal is not None),
                simulation_only=evaluate is not None,
                seconds=time.perf_counter() - started,
                bytes_up=up,
                bytes_down=down,
            ),
        )


def evaluate_at_clients(
    grid: Grid,
    strategy: Strategy,
    arrays: Arrays,
    clients: Mapping[str, Client],
    server_round: int,
    *,
    releases: Releases,
) -> Closing:
    """One evaluate message to every client: the closing counts, without privacy only.

    Args:
        grid: Any Flower grid.
        strategy: Any Flower strategy.
        arrays: The model that travels.
        clients: By name.
        server_round: Number of the last round.
        releases: What replies carry.

    Returns:
        Findings by client name; clients that failed are left out.
    """
    gather = _Gathering(grid, {client.node_id: (name, client) for name, client in clients.items()}, releases, arrays)
    messages = strategy.configure_evaluate(server_round, arrays_to_record(arrays), ConfigRecord(), gather.view)
    replies, _ = gather.replies(list(messages))
    return {name: findings for name, (_, findings) in replies.items() if findings is not None}


class _Gathering:
    """Sends messages to some clients and keeps the replies that can be used."""

    def __init__(
        self, grid: Grid, clients: Mapping[int, tuple[str, Client]], releases: Releases, arrays: Arrays
    ) -> None:
        self.view = CohortGrid(grid, clients)
        self._clients = clients
        self._releases = releases
        self._travelling = {name: array.shape for name, array in arrays.items()}

    def replies(self, messages: list[Message]) -> tuple[dict[str, tuple[Message, Findings | None]], dict[str, str]]:
        """Replies and failure codes by name, sorted, so that sums of floats do not depend on arrival."""
        good: dict[str, tuple[Message, Findings | None]] = {}
        failed: dict[str, str] = {}
        arrived = {self._clients[reply.metadata.src_node_id]: reply for reply in self.view.send_and_receive(messages)}
        for (name, client), reply in sorted(arrived.items(), key=lambda item: item[0][0]):
            if reply.has_error():
                failed[name] = str(reply.error.reason)
                continue
            try:
                good[name] = (reply, self._check(client, reply, messages[0].metadata.message_type))
            except FederationError as error:
                _log.error("left out: %s", error)
                failed[name] = ClientFailure.MESSAGE.name
        return good, failed

    def _check(self, client: Client, reply: Message, kind: str) -> Findings | None:
        return check_reply(
            reply.content,
            client.declaration,
            message_type=kind,
            releases=self._releases,
            travelling=self._travelling,
        )


def _causes(failures: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(failures.values()))) or "nobody answered"


def _mean_bytes(messages: list[Message]) -> float:
    total = sum(record.count_bytes() for message in messages for record in message.content.values())
    return total / max(1, len(messages))
