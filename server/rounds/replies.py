"""Channel to the clients and collector of their checked replies."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from common.arrays import Arrays, shapes_of
from common.errors import ClientFailure, FederationError, NotFiniteError
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.checks import check_reply
from common.messages.codec import Evaluation, arrays_to_record, decode_head, record_to_arrays
from common.messages.fields import ARRAYS, LEDGER, WORDS, Releases
from common.messages.held_array import array_records_in, content_bytes, values_of
from common.messages.rounded_update import restore_model
from server.aggregation.reply_spool import ReplySpool
from server.rounds.cohorts import CohortNodes
from server.rounds.enrollment import EnrolledClient
from server.rounds.messaging import LATE, NOT_FINITE, UNREACHABLE, Reply, deliver, failure_of
from server.rounds.node_registry import NodeRegistry
from server.rounds.waiting import Heard, Waiting, What

_log = logging.getLogger("bract.server")
_WAITS: dict[str, What] = {"train": "train", "query.close": "close"}
# Client name -> its reply, and the evaluation in it.
AcceptedReplies = dict[str, tuple[Message, Evaluation | None]]


@dataclass(frozen=True)
class Channel:
    """Connection of a run to its clients, with what may come back over it.

    Replies carry the fields of `releases`, no more and no fewer. Every message carries `run_id`. `keeper` remembers the
    heads of the clients' ledgers, where replies carry them, and `nodes` the name and the ledger of each node, where
    nodes have keys. Without `reply_seconds` all replies are waited for. `one_by_one` is as in `deliver`. `waiting`
    records whom the run waits for.
    """

    grid: Grid
    releases: Releases
    run_id: str
    keeper: HeadKeeper | None = None
    nodes: NodeRegistry | None = None
    one_by_one: bool = False
    reply_seconds: float | None = None
    waiting: Waiting = field(default_factory=Waiting)


class ReplyCollector:
    """Sender of messages to some clients that keeps the replies which pass all checks.

    A client without a node is not asked. `model` holds the tensors that are sent, in order. Accepted replies hold
    float32 tensors, also where updates come rounded, or `num_bytes` of masked words. `server_round` is for those who
    watch, 0 outside of rounds. `measure` returns the length of an update from the model that it leads to, where lengths
    matter. `received` has the bytes of each reply as it came, and `norms` the lengths of the accepted ones, by name.
    `spool` holds their tensors.
    """

    def __init__(
        self,
        channel: Channel,
        clients: Mapping[str, EnrolledClient],
        model: Arrays,
        num_bytes: int | None = None,
        *,
        server_round: int = 0,
        measure: Callable[[Arrays], float] | None = None,
        spool: ReplySpool | None = None,
    ) -> None:
        self._clients = clients
        self.nodes = {name: client.node_id for name, client in clients.items() if client.node_id is not None}
        self.cohort_grid = cast(Grid, CohortNodes(self.nodes.values()))
        self._channel = channel
        self._model, self._server_round = model, server_round
        shapes = shapes_of(model)
        self._shapes = shapes if num_bytes is None else {WORDS: (num_bytes,)}
        self.received: dict[str, int] = {}
        self.norms: dict[str, float] = {}
        self._measure, self._spool = measure, spool or ReplySpool()

    def replies(self, messages: Sequence[Message]) -> tuple[AcceptedReplies, dict[str, str]]:
        """Send messages and return accepted replies and failure codes, both by name and sorted.

        At most one message goes to each client. The order makes sums of floats independent of the order of arrival.
        """
        accepted: AcceptedReplies = {}
        failed = dict.fromkeys(sorted(set(self._clients) - set(self.nodes)), UNREACHABLE)
        asked = {message.metadata.dst_node_id for message in messages}
        names = {node: name for name, node in self.nodes.items() if node in asked}
        channel = self._channel

        def take(node: int, reply: Reply) -> None:
            name = names[node]
            if reply is None or reply.has_error():
                failed[name] = failure_of(reply)
                return
            try:
                accepted[name] = (reply, self._check(name, reply, messages[0].metadata.message_type))
            except FederationError as error:
                _log.error("left out: client %s: %s", name, error)
                failed[name] = NOT_FINITE if isinstance(error, NotFiniteError) else ClientFailure.MESSAGE.name
                # It may be larger than a model, and its message lives until all have come.
                reply.content.clear()

        with self._waited_for(messages, asked) as heard:
            deliver(
                channel.grid,
                messages,
                seconds=channel.reply_seconds,
                one_by_one=channel.one_by_one,
                heard=heard,
                take=take,
            )
        failed |= {name: LATE for name in names.values() if name not in accepted and name not in failed}
        accepted = dict(sorted(accepted.items()))
        self._drop_older_ledgers(accepted, failed)
        return accepted, dict(sorted(failed.items()))

    def _waited_for(self, messages: Sequence[Message], asked: Collection[int]) -> AbstractContextManager[Heard]:
        kind = messages[0].metadata.message_type if messages else ""
        what: What = _WAITS.get(kind, "evaluate")
        nodes = {name: node for name, node in self.nodes.items() if node in asked}
        channel = self._channel
        return channel.waiting.during(
            what,
            nodes,
            seconds=channel.reply_seconds,
            server_round=self._server_round,
            total=len(self._clients),
            needed=None if kind == "train" else 0,
        )

    def _check(self, name: str, reply: Message, message_type: str) -> Evaluation | None:
        releases = self._channel.releases
        evaluation = check_reply(
            reply.content,
            self._clients[name].declaration,
            message_type=message_type,
            releases=releases,
            travelling=self._shapes,
        )
        if releases.signed:
            # Decode the head here: a malformed one must fail this client, not the whole round.
            decode_head(reply.content)
        self.received[name] = content_bytes(reply.content)
        if releases.rounded and ARRAYS in reply.content:
            self._restore(name, reply)
        if ARRAYS in reply.content:
            self._keep(name, reply)
        return evaluation

    def _keep(self, name: str, reply: Message) -> None:
        """Keep a reply's tensors and the length of its update."""
        record = array_records_in(reply.content)[ARRAYS]
        if self._measure is not None:
            self.norms[name] = self._measure(record_to_arrays(record))
        reply.content[ARRAYS] = self._spool.keep(record)

    def _restore(self, name: str, reply: Message) -> None:
        """Put the model that a rounded update leads to into its reply.

        Everything that clips, filters or aggregates then bounds what is really added, whatever scales a client sent.
        """
        record = array_records_in(reply.content)[ARRAYS]
        model = restore_model({key: values_of(array) for key, array in record.items()}, self._model)
        clipped = self._channel.releases.mechanism.noise_at_server
        # A finite scale can still lead beyond float32. Where the server clips, such an update counts as zero.
        if not clipped and not all(np.isfinite(array).all() for array in model.values()):
            raise NotFiniteError(f"client {name} sent an update that leads to values that are not finite")
        reply.content[ARRAYS] = arrays_to_record(model)

    def _drop_older_ledgers(self, accepted: AcceptedReplies, failed: dict[str, str]) -> None:
        """Drop clients whose ledger lacks entries that the server has seen."""
        if self._channel.keeper is None:
            return
        heads: list[tuple[str, SignedHead]] = [
            (name, decode_head(reply.content)) for name, (reply, _) in accepted.items() if LEDGER in reply.content
        ]
        # Such a ledger is an older copy. Budget that was spent is not in it.
        for name, reason in self._channel.keeper.accept(heads).items():
            _log.error("left out: %s", reason)
            del accepted[name]
            failed[name] = ClientFailure.LEDGER.name
