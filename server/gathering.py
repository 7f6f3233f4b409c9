"""Messages to some clients, and the replies that can be used."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import ClientFailure, FederationError
from common.ledger.heads import HeadKeeper, SignedHead
from common.records import Findings, check_reply, decode_head
from common.releases import LEDGER, Releases
from server.cohort import CohortGrid
from server.meeting import Client

_log = logging.getLogger("bract.server")
Usable = dict[str, tuple[Message, Findings | None]]


@dataclass(frozen=True)
class Wire:
    """How a run's messages go out and what may come back.

    Attributes:
        grid: Any Flower grid.
        releases: What replies carry.
        run_id: The run's name, which goes out with every message.
        keeper: Remembers the heads of the clients' ledgers, where replies carry them.
    """

    grid: Grid
    releases: Releases
    run_id: str
    keeper: HeadKeeper | None = None


class Gathering:
    """Sends messages to some clients and keeps the replies that can be used.

    Args:
        wire: How.
        clients: To whom, by name.
        shapes: Names and shapes of the tensors that travel, in order.
    """

    def __init__(self, wire: Wire, clients: Mapping[str, Client], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.view = CohortGrid(wire.grid, [client.node_id for client in clients.values()])
        self._wire = wire
        self._clients = {client.node_id: (name, client) for name, client in clients.items()}
        self._shapes = dict(shapes)

    def replies(self, messages: Sequence[Message]) -> tuple[Usable, dict[str, str]]:
        """Replies and failure codes by name, sorted, so that sums of floats do not depend on arrival."""
        good: Usable = {}
        failed: dict[str, str] = {}
        arrived = {self._clients[r.metadata.src_node_id]: r for r in self.view.send_and_receive(list(messages))}
        for (name, client), reply in sorted(arrived.items(), key=lambda item: item[0][0]):
            if reply.has_error():
                failed[name] = str(reply.error.reason)
                continue
            try:
                good[name] = (reply, self._check(client, reply, messages[0].metadata.message_type))
            except FederationError as error:
                _log.error("left out: %s", error)
                failed[name] = ClientFailure.MESSAGE.name
        self._drop_bad_heads(good, failed)
        return good, dict(sorted(failed.items()))

    def _check(self, client: Client, reply: Message, kind: str) -> Findings | None:
        found = check_reply(
            reply.content, client.declaration, message_type=kind, releases=self._wire.releases, travelling=self._shapes
        )
        if self._wire.releases.signed:
            decode_head(reply.content)  # a malformed one leaves this client out, not the round
        return found

    def _drop_bad_heads(self, good: Usable, failed: dict[str, str]) -> None:
        """Leave out clients whose ledger is older than it was: what they had spent is not in it."""
        if self._wire.keeper is None:
            return
        heads: list[tuple[str, SignedHead]] = [
            (name, decode_head(reply.content)) for name, (reply, _) in good.items() if LEDGER in reply.content
        ]
        for name, why in self._wire.keeper.accept(heads).items():
            _log.error("left out: %s", why)
            del good[name]
            failed[name] = ClientFailure.LEDGER.name
