"""A Flower grid that calls the ClientApp directly, without Ray, sockets or copies.

It runs the same ServerApp and ClientApp as Ray and the deployment runtime. Only this
module of the simulations uses Flower's internals.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from itertools import count
from queue import SimpleQueue
from time import thread_time
from typing import Any

from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.client_config import SIMULATION_KEY
from common.config.loading import Scalar

_RUN_ID = 1
_SERVER_NODE = 1
_FIRST_NODE = 2
# CPU seconds of a message below which threads lose more by waiting for the interpreter than they win.
LEAST_WORK = 0.01
Observer = Callable[[Message], None]


class InProcessGrid(Grid):
    """A grid that delivers each message by a function call.

    Args:
        client_app: The app that answers; `client.app.create_app` makes one over chosen clients.
        num_clients: Number of clients; each is one node.
        run_config: Flat configuration, as Flower passes it to clients.
        num_workers: Most clients that run at the same time. Results do not depend on it.
        least_work: CPU seconds that the last two messages of a type must have taken for the next ones to be answered
            side by side. Shorter ones are answered sooner one after another.
        observer: Called with every message that leaves a client.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        run_config: Mapping[str, Scalar],
        *,
        num_workers: int = 1,
        least_work: float = LEAST_WORK,
        observer: Observer | None = None,
    ) -> None:
        # Flower refuses to build a `Message` in a process without an identity.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER_NODE, 1
        self._client_app = client_app
        self._num_clients = num_clients
        self._run_config = dict(run_config)
        self._num_workers, self._least_work = num_workers, least_work
        self._observer = observer
        self._run = Run.create_empty(_RUN_ID)
        self._contexts: dict[int, Context] = {}
        self._sent: dict[str, Message] = {}
        self._serial = count(1)
        self._pool: ThreadPoolExecutor | None = None
        # Of the last two messages of a type, because a client trains for longer than it says who it is.
        self._cpu_seconds: dict[str, tuple[float, float]] = {}

    def set_run(self, run: Any) -> None:
        """Set the run's description."""
        self._run = run

    @property
    def run(self) -> Any:
        """Description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message for one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node for each client."""
        return range(_FIRST_NODE, _FIRST_NODE + self._num_clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        batch = self._numbered(messages)
        self._sent |= batch
        return list(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies to pushed messages, each once.

        The clients work while the replies are taken. So a caller that keeps little of each reply needs little memory.
        """
        yield from self._replies([self._sent.pop(key) for key in message_ids if key in self._sent])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the ClientApp's reply to each message, in order."""
        del timeout
        batch = self._numbered(messages)
        replies = {reply.metadata.reply_to_message_id: reply for reply in self._replies(list(batch.values()))}
        return [replies[key] for key in batch]

    def _numbered(self, messages: Iterable[Message]) -> dict[str, Message]:
        batch = {str(next(self._serial)): message for message in messages}
        for key, message in batch.items():
            message.metadata.__dict__["_message_id"] = key
        return batch

    def _replies(self, batch: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message, those of long ones as they come."""
        waiting = deque(batch)
        while waiting:
            if self._is_worth_threads(waiting[0]):
                yield from self._side_by_side(waiting)
            else:
                yield self._deliver(waiting.popleft())

    def _is_worth_threads(self, message: Message) -> bool:
        """Return True if several workers would answer such messages sooner."""
        # Two in a row, because one may have loaded the data or met the garbage collector.
        return self._num_workers > 1 and min(self._last_two(message)) >= self._least_work

    def _has_become_short(self, message: Message) -> bool:
        # Again two in a row. One client may have few images, or none.
        return max(self._last_two(message)) < self._least_work

    def _last_two(self, message: Message) -> tuple[float, float]:
        """Return the CPU seconds of the last two messages of a type."""
        return self._cpu_seconds.get(message.metadata.message_type, (0.0, 0.0))

    def _side_by_side(self, waiting: deque[Message]) -> Iterator[Message]:
        """Yield replies as they come, until messages are short."""
        if self._pool is None:
            # Kept for all rounds, because each thread builds a network of its own.
            self._pool = ThreadPoolExecutor(self._num_workers)
        pool, done, open_ones = self._pool, SimpleQueue[Future[Message]](), set[Future[Message]]()

        def submit() -> None:
            future = pool.submit(self._deliver, waiting.popleft())
            open_ones.add(future)
            future.add_done_callback(done.put)

        try:
            # Few at a time, so that replies which nobody has taken yet cannot fill the memory.
            for _ in range(min(len(waiting), 2 * self._num_workers)):
                submit()
            while open_ones:
                future = done.get()
                open_ones.discard(future)
                reply = future.result()
                if waiting and not self._has_become_short(waiting[0]):
                    submit()
                yield reply
        finally:
            # Where nobody takes the rest. Others may be using the workers.
            for future in open_ones:
                future.cancel()

    def close(self) -> None:
        """Stop the workers, once each has finished its client."""
        if self._pool is not None:
            # Nothing may be charged after the caller has closed the ledgers.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _deliver(self, message: Message) -> Message:
        node_id, began = message.metadata.dst_node_id, thread_time()
        context = self._contexts.get(node_id) or self._new_context(node_id)
        reply = self._client_app(message, context)
        # CPU time, which does not grow while other workers have the processor.
        self._cpu_seconds[message.metadata.message_type] = self._last_two(message)[1], thread_time() - began
        # Most clients keep nothing between messages. A hundred thousand empty contexts would take gigabytes.
        if context.state:
            self._contexts[node_id] = context
        reply.metadata.__dict__["_message_id"] = str(next(self._serial))
        if self._observer is not None:
            # A copy, because the server drops what a reply holds as soon as it has used it.
            seen = copy(reply)
            if reply.has_content():
                seen.content = RecordDict(dict(reply.content.items()))
            self._observer(seen)
        return reply

    def _new_context(self, node_id: int) -> Context:
        partition: dict[str, Scalar] = {"partition-id": node_id - _FIRST_NODE, "num-partitions": self._num_clients}
        partition[SIMULATION_KEY] = True
        return Context(_RUN_ID, node_id, partition, RecordDict(), dict(self._run_config))


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, Scalar],
    *,
    num_clients: int,
    num_workers: int = 1,
    least_work: float = LEAST_WORK,
    observer: Observer | None = None,
) -> None:
    """Run a ServerApp over simulated clients in this process.

    Args:
        server_app: Any Flower ServerApp.
        client_app: Any Flower ClientApp.
        run_config: Complete flat configuration.
        num_clients: Number of clients.
        num_workers: Most clients that run at the same time.
        least_work: As in `InProcessGrid`.
        observer: Called with every message that leaves a client.
    """
    grid = InProcessGrid(
        client_app, num_clients, run_config, num_workers=num_workers, least_work=least_work, observer=observer
    )
    try:
        server_app(grid, Context(_RUN_ID, _SERVER_NODE, {}, RecordDict(), dict(run_config)))
    finally:
        grid.close()


def message_bytes(message: Message) -> bytes:
    """Return everything that a message carries, with its metadata and its error."""
    parts = [repr(vars(message.metadata)).encode()]
    if message.has_error():
        return b"\n".join([*parts, repr(vars(message.error)).encode()])
    for name, record in message.content.items():
        for key, value in record.items():
            raw = value.numpy().tobytes() if isinstance(value, Array) else repr(value).encode()
            parts.append(f"{name}.{key}=".encode() + raw)
    return b"\n".join(parts)
