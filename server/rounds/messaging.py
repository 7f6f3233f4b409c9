"""Sending of messages to clients and waiting for their replies."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from queue import Empty, Queue

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import ClientFailure
from server.rounds.waiting import Heard

# Codes that the server gives to a client which sent no usable reply.
LATE, UNREACHABLE, OTHER, NOT_FINITE = "LATE", "UNREACHABLE", "OTHER", "NOT-FINITE"
# Failures that are the client's decision. Asking again does not change them.
DECIDED = (ClientFailure.POLICY.name, ClientFailure.LEDGER.name, ClientFailure.BUNDLE.name)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
_LONGEST_SILENCE = 1.0
# Flower's own codes for a node that is gone, and for a message or a reply that was lost.
_GONE = {3: UNREACHABLE, 4: UNREACHABLE, 5: UNREACHABLE}
# None is a reply that could not be read. An honest client sends none.
Reply = Message | None
# (node, its reply), as it comes.
Take = Callable[[int, Reply], None]


def _to_nobody(_: Collection[int]) -> None:
    """Tell nobody."""


def _leave(_node: int, _reply: Reply) -> None:
    """Leave a reply as it is."""


def deliver(
    grid: Grid,
    messages: Sequence[Message],
    *,
    seconds: float | None = None,
    one_by_one: bool = False,
    heard: Heard = _to_nobody,
    take: Take = _leave,
) -> dict[int, Reply]:
    """Send at most one message to each node and return the replies by node.

    Flower's own waiting looks every three seconds only, and assigns replies by a sender that some of its error replies
    lack. A reply may be the error that the runtime made in its place, or None where it cannot be read. A node that is
    missing was late, or could not be asked. Without `seconds` all are waited for. For real clients `one_by_one` fetches
    each reply in its own thread. Then a reply that cannot be read, or an upload that never ends, costs only its
    sender's place, but those that come together are in memory together. `heard` is told at least once a second whose
    replies have come, unless `take` needs longer. That is called with each reply when it has come, in this thread, and
    may move its tensors out of memory.
    """
    asked = {
        str(key): message.metadata.dst_node_id
        for key, message in zip(grid.push_messages(messages), messages, strict=False)
        # Flower gives no key for a message that it could not send.
        if key
    }
    deadline = None if seconds is None else time.monotonic() + seconds
    return (_fetch_apart if one_by_one else _fetch_together)(grid, asked, deadline, heard, take)


def _fetch_together(
    grid: Grid, asked: dict[str, int], deadline: float | None, heard: Heard, take: Take
) -> dict[int, Reply]:
    arrived: dict[int, Reply] = {}
    pause = _FIRST_PAUSE
    while asked:
        for reply in grid.pull_messages(list(asked)):
            node = asked.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived[node] = reply
                take(node, reply)
        if not asked or (deadline is not None and time.monotonic() >= deadline):
            break
        heard(arrived)
        time.sleep(pause if deadline is None else min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return arrived


def _fetch_apart(
    grid: Grid, asked: dict[str, int], deadline: float | None, heard: Heard, take: Take
) -> dict[int, Reply]:
    queue: Queue[_Fetched] = Queue()
    stop = threading.Event()
    for key, node in asked.items():
        # Daemons: a thread that waits for an endless upload must not keep the process alive.
        threading.Thread(target=_fetch, args=(grid, key, node, queue, stop), daemon=True).start()
    arrived: dict[int, Reply] = {}
    try:
        while len(arrived) < len(asked):
            heard(arrived)
            left = _LONGEST_SILENCE if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                node, reply, came = queue.get(timeout=min(left, _LONGEST_SILENCE))
            except Empty:
                if left < _LONGEST_SILENCE:
                    break
                continue
            if isinstance(reply, Exception):
                raise reply
            # It came while an earlier one was taken. How long that takes must not decide who is late.
            if deadline is not None and came > deadline:
                continue
            arrived[node] = reply
            take(node, reply)
    finally:
        stop.set()
    return arrived


# (node, its reply or the server's own fault, when it came)
_Fetched = tuple[int, Reply | Exception, float]


def _fetch(grid: Grid, key: str, node: int, queue: Queue[_Fetched], stop: threading.Event) -> None:
    """Fetch one reply and put it into a queue."""
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            # The answer may hold other messages, so select by the message that was asked for.
            replies = [reply for reply in grid.pull_messages([key]) if reply.metadata.reply_to_message_id == key]
        except (httpx.HTTPError, OSError) as error:
            # The server's own network failed, which is no client's fault: the caller raises it.
            queue.put((node, error, time.monotonic()))
            return
        except Exception:
            # Flower could not read an object that no honest client sends. It costs this client its place only.
            queue.put((node, None, time.monotonic()))
            return
        if replies:
            queue.put((node, replies[0], time.monotonic()))
            return
        stop.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def failure_of(reply: Reply) -> str:
    """Return the failure code of a reply from a closed list.

    A client's own text goes no further, because it could hold data. The reply has an error, or is None if it cannot be
    read.
    """
    if reply is None:
        return ClientFailure.MESSAGE.name
    code = reply.error.code
    if code in _GONE:
        return _GONE[code]
    return ClientFailure(code).name if code in set(ClientFailure) else OTHER


def wait_for_nodes(
    grid: Grid,
    wanted: Mapping[str, int],
    min_nodes: int,
    *,
    seconds: float,
    poll_seconds: float = 0.5,
    heard: Heard = _to_nobody,
) -> None:
    """Wait until enough of the wanted nodes are connected or time is up."""
    deadline = time.monotonic() + seconds
    while len(there := set(grid.get_node_ids()) & set(wanted.values())) < min_nodes and time.monotonic() < deadline:
        heard(there)
        time.sleep(poll_seconds)
