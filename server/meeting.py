"""Before round 1: wait for the clients, learn who they are, and let those go that refuse the run."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import ClientFailure, FederationError
from common.ledger.heads import HeadKeeper
from common.records import CONFIG, Declaration, decode_declaration, decode_head, run_config
from common.releases import LEDGER

_log = logging.getLogger("bract.server")
# A client that says one of these has decided for itself; the others have not, and go on.
_REFUSALS = {ClientFailure.POLICY.name, ClientFailure.LEDGER.name}


@dataclass(frozen=True)
class Client:
    """One client of this run: what it declared, and where Flower reaches it."""

    declaration: Declaration
    node_id: int


@dataclass(frozen=True)
class Meeting:
    """Who came.

    Attributes:
        clients: Those that take part, by name, sorted.
        refusals: Why others do not, by Flower's number of their node.
    """

    clients: Mapping[str, Client]
    refusals: Mapping[str, str] = field(default_factory=dict)


def meet_clients(
    grid: Grid,
    num_clients: int,
    *,
    run_id: str,
    keeper: HeadKeeper | None = None,
    poll_seconds: float = 0.5,
    wait_seconds: float = 120.0,
) -> Meeting:
    """Wait for all clients, ask each to declare itself and to agree to the run, and check that they agree.

    A client whose policy or budget does not allow the run is left out; the run goes on.

    Args:
        grid: Any Flower grid.
        num_clients: How many clients the run is configured for.
        run_id: The run's name, the same when it is resumed.
        keeper: Remembers the heads of the clients' ledgers, where replies carry them.
        poll_seconds: Pause between looks while some are missing.
        wait_seconds: How long to wait for them.

    Raises:
        FederationError: Too few clients came or agreed, a client failed, two have one name, or they
            disagree on classes, input shape or backbone.
    """
    node_ids = _wait_for(grid, num_clients, poll_seconds, wait_seconds)
    queries = [Message(RecordDict({CONFIG: run_config(run_id)}), node, MessageType.QUERY) for node in node_ids]
    clients: dict[str, Client] = {}
    refusals: dict[str, str] = {}
    replies = list(grid.send_and_receive(queries))
    for reply in replies:
        node = reply.metadata.src_node_id
        if reply.has_error():
            if reply.error.reason not in _REFUSALS:
                raise FederationError(f"a client could not declare itself: {reply.error.reason}; its own log says more")
            refusals[f"node {node}"] = str(reply.error.reason)
            continue
        declared = decode_declaration(reply.content)
        if declared.name in clients:
            raise FederationError(f"two clients call themselves {declared.name!r}")
        clients[declared.name] = Client(declared, node)
    if len(replies) < num_clients:
        raise FederationError(f"only {len(replies)} of {num_clients} clients declared themselves")
    if keeper is not None:
        refusals |= _drop_bad_heads(clients, replies, keeper)
    if not clients:
        raise FederationError(f"no client takes part: {', '.join(sorted(set(refusals.values())))}")
    for who, why in refusals.items():
        _log.error("%s does not take part: %s", who, why)
    _check_agreement([client.declaration for client in clients.values()])
    return Meeting(dict(sorted(clients.items())), refusals)


def _wait_for(grid: Grid, num_clients: int, poll_seconds: float, wait_seconds: float) -> list[int]:
    deadline = time.monotonic() + wait_seconds
    while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() > deadline:
            raise FederationError(
                f"num-clients={num_clients} but only {len(node_ids)} nodes are there after {wait_seconds:.0f} s; with "
                f"`flwr run`, pass --federation-config num-supernodes={num_clients}"
            )
        time.sleep(poll_seconds)
    return node_ids


def _drop_bad_heads(clients: dict[str, Client], replies: Sequence[Message], keeper: HeadKeeper) -> dict[str, str]:
    """Take clients out whose ledger is older than it was, or another one."""
    names = {client.node_id: name for name, client in clients.items()}
    heads = [
        (names[reply.metadata.src_node_id], decode_head(reply.content))
        for reply in replies
        if not reply.has_error() and LEDGER in reply.content
    ]
    refused = keeper.accept(heads)
    for name, why in refused.items():
        _log.error("%s", why)
        del clients[name]
    return {f"client {name}": ClientFailure.LEDGER.name for name in refused}


def _check_agreement(declarations: Sequence[Declaration]) -> None:
    first = declarations[0]
    for other in declarations[1:]:
        for field_name in ("classes", "input_shape", "backbone_hash"):
            if getattr(other, field_name) != getattr(first, field_name):
                raise FederationError(f"clients {first.name} and {other.name} disagree on {field_name}")
