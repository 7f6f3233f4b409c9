"""Limits of threads and work in several threads.

Small steps of a client are faster with one thread, and give the same bits on every engine.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Seconds of an item. Below, two threads lose more time waiting for the interpreter lock than they gain.
_WORTH_THREADS = 4e-4
# A new time counts for one part of so many in the running mean.
_REMEMBERED = 8
# After so many items for each thread one is timed again. All threads wait for it.
_TRIED_AGAIN = 64

_local = threading.local()


def _pin_blas() -> None:
    # Once in each thread, because some libraries keep their limit by thread.
    if getattr(_local, "pinned", False):
        return
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)
    _local.pinned = True


def num_cores() -> int:
    """Return the number of cores that this process may use.

    A container or a cluster's scheduler allows it fewer than the machine has.
    """
    from joblib import cpu_count

    return int(cpu_count())


def pin_to_one_thread() -> None:
    """Limit BLAS and a loaded torch to one thread.

    The limit of BLAS holds for the calling thread, and with most libraries for all.
    """
    _pin_blas()
    # Importing torch here would cost seconds that a linear head does not need.
    torch = sys.modules.get("torch")
    # Another thread may be in the middle of importing it.
    if torch is not None and hasattr(torch, "set_num_threads"):
        # Also where torch says 1, which may be BLAS's limit. Autograd takes all cores until torch itself is told.
        torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in torch on one thread.

    OneDNN may choose other kernels for more. Copying hundreds of small tensors is slower on more, because the threads
    wait for each other at each one.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SharedContext:
    """Context that the first thread enters and the last one leaves.

    It changes something of the whole process. `enter` puts what takes it back on the stack.
    """

    def __init__(self, enter: Callable[[ExitStack], None]) -> None:
        self._enter, self._lock = enter, threading.Lock()
        self._users, self._stack = 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._enter(self._stack)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stack.close()


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[tuple[_Key, _Item]]
) -> Iterator[tuple[_Key, _Result]]:
    """Yield each key with the result of its item, in order.

    Where an item takes long, several threads compute the results, a few ahead of what is taken. Short ones are computed
    by the caller's thread.
    """
    workers = min(8, num_cores())
    pending: deque[tuple[_Key, Future[_Result]]] = deque()
    pool, pace = ThreadPoolExecutor(workers), _Pace(_TRIED_AGAIN * workers)

    def finished(left: int) -> Iterator[tuple[_Key, _Result]]:
        while len(pending) > left:
            first, future = pending.popleft()
            yield first, future.result()

    try:
        for key, item in items:
            if pace.for_caller:
                yield from finished(0)
                yield key, pace.timed(function, item)
            else:
                pending.append((key, pool.submit(function, item)))
                pace.in_threads += 1
                # Decoded images are large: only a few may wait in memory.
                yield from finished(2 * workers)
        yield from finished(0)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Pace:
    """Time that items take, of late.

    Attributes:
        in_threads: Items that threads got since one was timed.
    """

    def __init__(self, tried_again: int) -> None:
        self.in_threads = 0
        self._seconds, self._tried_again = 0.0, tried_again

    @property
    def for_caller(self) -> bool:
        """True if the next item belongs in the caller's thread."""
        return self._seconds < _WORTH_THREADS or self.in_threads >= self._tried_again

    def timed(self, function: Callable[[_Item], _Result], item: _Item) -> _Result:
        """Return an item's result and time it.

        Only these items are timed: in a pool all seem long, since its threads wait for each other's interpreter lock.
        """
        began = time.perf_counter()
        result = function(item)
        taken = time.perf_counter() - began
        # Whatever was before threads got the items is long ago.
        self._seconds = taken if self.in_threads else self._seconds + (taken - self._seconds) / _REMEMBERED
        self.in_threads = 0
        return result
