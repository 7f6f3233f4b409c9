"""Quota of what an admitted node may push.

It follows from what the server sent to that node: for each message one reply, of a size in proportion to the message.
Flower itself bounds neither, and does not compare a message's sender with the node that pushes it.
"""

import asyncio
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from google.protobuf.message import DecodeError

from server.deployment import superlink_api as api

_MEGABYTE = 1024 * 1024
# A reply is as large as the model that it answers, and may be sent again where the line breaks.
_TIMES = 4
# A reply is announced again where the answer to the first announcement was lost.
_ANNOUNCEMENTS = 3
# A node works on one run at a time, and may still send the replies of earlier ones.
_RUNS_KEPT = 16


@dataclass(frozen=True)
class Refusal:
    """An HTTP status and the reason why a push is refused."""

    status: int
    reason: str


@dataclass
class _Tally:
    """Counts of what one node got and pushed in one run.

    `open` holds the objects of the latest message that the node has pulled. `pushed` holds the bytes of each announced
    reply by its session. `turn` lets the node's pushes through one after the other.
    """

    messages: int = 0
    got: int = 0
    largest: int = 0
    open: dict[str, int] = field(default_factory=dict)
    pushed: dict[str, int] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def start_message(self) -> None:
        self.messages += 1
        self.open = {}

    def take_object(self, name: str, size: int) -> None:
        # The same object counts once: to pull it again must not widen the quota.
        if name not in self.open:
            self.open[name] = size
            self.got += size
            self.largest = max(self.largest, sum(self.open.values()))


class PushQuota:
    """Counts of what nodes get and push, by node and run.

    Guarantee: in a run a node announces at most three times as many replies as it got messages, each its own. A reply
    has at most four times the bytes of the largest message of the run and `reply_megabytes` more, and all replies of
    the run at most four times the bytes of all messages and `reply_megabytes` more for each. Only requests that Flower
    has accepted are counted, so nobody uses up another node's quota.
    """

    def __init__(self, *, reply_megabytes: int = api.DEFAULT_REPLY_MEGABYTES) -> None:
        self._extra = reply_megabytes * _MEGABYTE
        self._tallies: dict[int, OrderedDict[int, _Tally]] = {}

    def turn(self, path: str, body: bytes) -> AbstractAsyncContextManager[object]:
        """Return what a push must hold from its check until it is counted."""
        # Of many pushes at once each alone would be within the quota.
        tally = self._pushing(path, body)
        return nullcontext() if tally is None else tally.turn

    def _pushing(self, path: str, body: bytes) -> _Tally | None:
        try:
            if path == api.PUSH_OBJECT:
                pushed = PushObjectRequest.FromString(body)
                return self._of(pushed.node.node_id, pushed.run_id)
            if path == api.PUSH_MESSAGES:
                announced = PushMessagesRequest.FromString(body)
                runs = [message.metadata.run_id for message in announced.messages_list[:1]]
                return self._of(announced.node.node_id, runs[0]) if runs else None
        except DecodeError:
            return None
        return None

    def refusal(self, path: str, body: bytes) -> Refusal | None:
        """Return why a request is refused, None for one within its quota."""
        try:
            if path == api.PUSH_MESSAGES:
                return self._refused_announcement(PushMessagesRequest.FromString(body), len(body))
            if path == api.PUSH_OBJECT:
                return self._refused_object(PushObjectRequest.FromString(body), len(body))
        except DecodeError:
            return Refusal(400, "The request cannot be read.")
        return None

    def count(self, path: str, body: bytes, reply: bytes) -> None:
        """Count a request that Flower has accepted, with its reply."""
        if path == api.PULL_MESSAGES:
            for message in PullMessagesResponse.FromString(reply).messages_list:
                self._started(PullMessagesRequest.FromString(body).node.node_id, message.metadata.run_id)
        elif path == api.PULL_OBJECT:
            pulled = PullObjectRequest.FromString(body)
            # A node may ask before the server has the whole message, or for a name that does not exist. Neither is an
            # object that it got.
            available = PullObjectResponse.FromString(reply).object_available
            if available and (tally := self._of(pulled.node.node_id, pulled.run_id)) is not None:
                tally.take_object(pulled.object_id, len(reply))
        elif path == api.PUSH_MESSAGES:
            announced = PushMessagesRequest.FromString(body)
            run = announced.messages_list[0].metadata.run_id
            if (tally := self._of(announced.node.node_id, run)) is not None:
                tally.pushed[PushMessagesResponse.FromString(reply).session_id] = len(body)
        elif path == api.PUSH_OBJECT:
            pushed = PushObjectRequest.FromString(body)
            if (tally := self._of(pushed.node.node_id, pushed.run_id)) is not None:
                tally.pushed[pushed.session_id] += len(body)

    def _refused_announcement(self, asked: PushMessagesRequest, size: int) -> Refusal | None:
        if len(asked.messages_list) != 1 or len(asked.message_object_trees) != 1:
            return Refusal(400, "A node sends one reply at a time.")
        metadata = asked.messages_list[0].metadata
        # Otherwise a node could answer for another one, or send messages to others in the server's name.
        if metadata.src_node_id != asked.node.node_id or not metadata.reply_to_message_id:
            return Refusal(400, "A node sends only its own replies.")
        tally = self._of(asked.node.node_id, metadata.run_id)
        if tally is None or len(tally.pushed) >= _ANNOUNCEMENTS * tally.messages:
            return Refusal(429, "This node has sent three times as many replies as it got messages in this run.")
        return self._too_much(tally, size, size)

    def _refused_object(self, asked: PushObjectRequest, size: int) -> Refusal | None:
        tally = self._of(asked.node.node_id, asked.run_id)
        if tally is None or asked.session_id not in tally.pushed:
            return Refusal(400, "This belongs to no reply that the node has announced.")
        return self._too_much(tally, tally.pushed[asked.session_id] + size, size)

    def _too_much(self, tally: _Tally, reply: int, added: int) -> Refusal | None:
        reply_limit = _TIMES * tally.largest + self._extra
        if reply > reply_limit:
            return Refusal(413, f"A reply of this run may have at most {reply_limit} bytes.")
        run_limit = _TIMES * tally.got + self._extra * tally.messages
        if sum(tally.pushed.values()) + added > run_limit:
            return Refusal(413, f"The replies of this run so far may have at most {run_limit} bytes together.")
        return None

    def _of(self, node: int, run: int) -> _Tally | None:
        return self._tallies.get(node, OrderedDict()).get(run)

    def _started(self, node: int, run: int) -> None:
        runs = self._tallies.setdefault(node, OrderedDict())
        runs.setdefault(run, _Tally()).start_message()
        runs.move_to_end(run)
        while len(runs) > _RUNS_KEPT:
            runs.popitem(last=False)
