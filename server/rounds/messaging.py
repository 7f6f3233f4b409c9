"""Messages out and replies in: a reply belongs to the message that it answers, and waiting has an end."""

import threading
import time
from collections.abc import Mapping, Sequence
from queue import Empty, Queue

import httpx
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
# A reply that could not even be read; an honest client sends none.
Reply = Message | None


def deliver(
    grid: Grid, messages: Sequence[Message], *, seconds: float | None = None, one_by_one: bool = False
) -> dict[int, Reply]:
    """Send messages, at most one to a node, and wait for their replies.

    Flower's own waiting looks every three seconds, and tells replies apart by a sender that some of its
    error replies do not have.

    Args:
        grid: Any Flower grid.
        messages: What to send.
        seconds: How long to wait for replies; None waits for all.
        one_by_one: Fetch each reply by itself, in a thread of its own: one that cannot be read, or whose upload
            never ends, then costs its sender its place and nobody else anything. For real clients.

    Returns:
        Node that was asked -> its reply, the error that the runtime made in its place, or None where it cannot be
        read. Who is missing was late, or could not be asked.
    """
    asked = {
        str(key): message.metadata.dst_node_id
        for key, message in zip(grid.push_messages(messages), messages, strict=False)
        if key
    }
    deadline = None if seconds is None else time.monotonic() + seconds
    return _each_apart(grid, asked, deadline) if one_by_one else _all_at_once(grid, asked, deadline)


def _all_at_once(grid: Grid, asked: dict[str, int], deadline: float | None) -> dict[int, Reply]:
    arrived: dict[int, Reply] = {}
    pause = _FIRST_PAUSE
    while asked:
        for reply in grid.pull_messages(list(asked)):
            node = asked.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived[node] = reply
        if not asked or _is_over(deadline):
            break
        time.sleep(_within(pause, deadline))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return arrived


def _each_apart(grid: Grid, asked: dict[str, int], deadline: float | None) -> dict[int, Reply]:
    found: Queue[tuple[int, Reply | Exception]] = Queue()
    stop = threading.Event()
    for key, node in asked.items():
        threading.Thread(target=_fetch, args=(grid, key, node, found, stop), daemon=True).start()
    arrived: dict[int, Reply] = {}
    try:
        while len(arrived) < len(asked):
            try:
                node, reply = found.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if isinstance(reply, Exception):
                raise reply
            arrived[node] = reply
    finally:
        stop.set()
    return arrived


def _fetch(
    grid: Grid, key: str, node: int, found: "Queue[tuple[int, Reply | Exception]]", stop: threading.Event
) -> None:
    """Look for one reply until it is there; an error of the network is the whole run's."""
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            replies = [one for one in grid.pull_messages([key]) if one.metadata.reply_to_message_id == key]
        except (httpx.HTTPError, OSError) as error:
            found.put((node, error))
            return
        except Exception:  # of Flower's reader, on an object that no client of ours makes
            found.put((node, None))
            return
        if replies:
            found.put((node, replies[0]))
            return
        stop.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _within(pause: float, deadline: float | None) -> float:
    return pause if deadline is None else min(pause, max(0.0, deadline - time.monotonic()))


def failure_of(reply: Reply) -> str:
    """Why a reply is no answer, in a word of a closed list: a client's own text goes no further.

    Args:
        reply: One that `has_error()`, or that cannot be read.
    """
    if reply is None:
        return ClientFailure.MESSAGE.name
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
