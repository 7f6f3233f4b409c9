"""Messages out and replies in: a reply belongs to the message that it answers, and waiting has an end."""

import time
from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import ClientFailure

# What a server says of a client that said nothing usable itself.
LATE, UNREACHABLE, OTHER = "LATE", "UNREACHABLE", "OTHER"
# Whoever says one of these has decided: asking again changes nothing.
DECIDED = (ClientFailure.POLICY.name, ClientFailure.LEDGER.name, ClientFailure.BUNDLE.name)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
# Flower's own codes for a node that is gone, and for a message or a reply of it that never came through.
_GONE = {3: UNREACHABLE, 4: UNREACHABLE, 5: UNREACHABLE}


def deliver(grid: Grid, messages: Sequence[Message], *, seconds: float | None = None) -> dict[int, Message]:
    """Send messages, at most one to a node, and wait for their replies.

    Flower's own waiting looks every three seconds, and tells replies apart by a sender that some of its
    error replies do not have.

    Args:
        grid: Any Flower grid.
        messages: What to send.
        seconds: How long to wait for replies; None waits for all.

    Returns:
        Node that was asked -> its reply, or the error that the runtime made in its place. Who is missing was late,
        or could not be asked.
    """
    asked = {
        str(key): message.metadata.dst_node_id
        for key, message in zip(grid.push_messages(messages), messages, strict=False)
        if key
    }
    arrived: dict[int, Message] = {}
    deadline = None if seconds is None else time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while asked:
        for reply in grid.pull_messages(list(asked)):
            node = asked.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived[node] = reply
        if not asked or (deadline is not None and time.monotonic() >= deadline):
            break
        time.sleep(pause if deadline is None else min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return arrived


def failure_of(reply: Message) -> str:
    """Why a reply is an error, in a word of a closed list: a client's own text goes no further.

    Args:
        reply: One that `has_error()`.
    """
    code = reply.error.code
    if code in _GONE:
        return _GONE[code]
    return ClientFailure(code).name if code in set(ClientFailure) else OTHER


def wait_for_nodes(grid: Grid, wanted: Mapping[str, int], least: int, *, seconds: float, poll: float = 0.5) -> None:
    """Wait until some of the wanted nodes are there; or until the time is over, which is no error.

    Args:
        grid: Any Flower grid.
        wanted: Client name -> node.
        least: How many are enough.
        seconds: How long to wait at most.
        poll: Seconds between looks.
    """
    deadline = time.monotonic() + seconds
    while len(set(grid.get_node_ids()) & set(wanted.values())) < least and time.monotonic() < deadline:
        time.sleep(poll)
