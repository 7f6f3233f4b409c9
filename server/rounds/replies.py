"""Messages to some clients, and the replies that can be used."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import ClientFailure, FederationError
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.checks import check_reply
from common.messages.codec import Evaluation, decode_head
from common.messages.fields import LEDGER, Releases
from server.rounds.cohorts import CohortGrid
from server.rounds.enrollment import Client
from server.rounds.messaging import LATE, UNREACHABLE, deliver, failure_of
from server.rounds.node_registry import NodeRegistry

_log = logging.getLogger("bract.server")
AcceptedReplies = dict[str, tuple[Message, Evaluation | None]]


@dataclass(frozen=True)
class Channel:
    """How a run's messages go out and what may come back.

    Attributes:
        grid: Any Flower grid.
        releases: What replies carry.
        run_id: The run's name, which goes out with every message.
        keeper: Remembers the heads of the clients' ledgers, where replies carry them.
        nodes: Remembers which node came with which name and ledger; only where nodes have keys.
        one_by_one: Whether replies are fetched apart, see `deliver`.
    """

    grid: Grid
    releases: Releases
    run_id: str
    keeper: HeadKeeper | None = None
    nodes: NodeRegistry | None = None
    one_by_one: bool = False


class ReplyCollector:
    """Sends messages to some clients and keeps the replies that can be used.

    Args:
        channel: How.
        clients: To whom, by name; one without a node is not asked.
        shapes: Names and shapes of the tensors that travel, in order.
    """

    def __init__(self, channel: Channel, clients: Mapping[str, Client], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._there = {name: client for name, client in clients.items() if client.node_id is not None}
        self._away = sorted(set(clients) - set(self._there))
        self.view = CohortGrid(channel.grid, list(self.nodes.values()))
        self._channel = channel
        self._shapes = dict(shapes)

    @property
    def nodes(self) -> dict[str, int]:
        """Client name -> the node that is asked for it."""
        return {name: client.node_id for name, client in self._there.items() if client.node_id is not None}

    def replies(
        self, messages: Sequence[Message], *, seconds: float | None = None
    ) -> tuple[AcceptedReplies, dict[str, str]]:
        """Replies and failure codes by name, sorted, so that sums of floats do not depend on arrival.

        Args:
            messages: At most one a client.
            seconds: How long to wait; None waits for all.
        """
        good: AcceptedReplies = {}
        failed = dict.fromkeys(self._away, UNREACHABLE)
        asked = {message.metadata.dst_node_id for message in messages}
        arrived = deliver(self.view, messages, seconds=seconds, one_by_one=self._channel.one_by_one)
        for name, node in sorted(self.nodes.items()):
            if node not in asked:
                continue
            if node not in arrived:
                failed[name] = LATE
            elif (reply := arrived[node]) is None or reply.has_error():
                failed[name] = failure_of(reply)
            else:
                self._judge(name, reply, messages[0].metadata.message_type, good, failed)
        self._drop_bad_heads(good, failed)
        return good, dict(sorted(failed.items()))

    def _judge(self, name: str, reply: Message, kind: str, good: AcceptedReplies, failed: dict[str, str]) -> None:
        try:
            good[name] = (reply, self._check(self._there[name], reply, kind))
        except FederationError as error:
            _log.error("left out: client %s: %s", name, error)
            failed[name] = ClientFailure.MESSAGE.name

    def _check(self, client: Client, reply: Message, kind: str) -> Evaluation | None:
        found = check_reply(
            reply.content,
            client.declaration,
            message_type=kind,
            releases=self._channel.releases,
            travelling=self._shapes,
        )
        if self._channel.releases.signed:
            decode_head(reply.content)  # a malformed one leaves this client out, not the round
        return found

    def _drop_bad_heads(self, good: AcceptedReplies, failed: dict[str, str]) -> None:
        """Leave out clients whose ledger is older than it was: what they had spent is not in it."""
        if self._channel.keeper is None:
            return
        heads: list[tuple[str, SignedHead]] = [
            (name, decode_head(reply.content)) for name, (reply, _) in good.items() if LEDGER in reply.content
        ]
        for name, why in self._channel.keeper.accept(heads).items():
            _log.error("left out: %s", why)
            del good[name]
            failed[name] = ClientFailure.LEDGER.name
