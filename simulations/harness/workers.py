"""Worker processes of one thread that end with their parent."""

import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from common.errors import ConfigError
from common.system.threads import pin_to_one_thread

Initializer = Callable[..., object]


@contextmanager
def worker_pool(workers: int, initialize: Initializer | None = None, *args: Any) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of new processes and terminate them on leaving.

    Args:
        workers: Number of processes.
        initialize: Called once in each process with `args`; picklable.
        args: Arguments of `initialize`.

    Raises:
        ConfigError: A process was killed, most likely because memory ran out.
    """
    others = set(multiprocessing.active_children())
    # A forked worker would inherit the parent's threads and open ledgers.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _initialize, (initialize, *args))
    try:
        yield pool
    except BrokenProcessPool:
        raise ConfigError("a worker was killed, most likely because memory ran out: try fewer --workers") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # Without this, Ctrl-C would wait until each worker has finished its batch.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def quiet_flower() -> None:
    """Suppress Flower's log lines below errors.

    There are several a round, and an audit has thousands of rounds.
    """
    # Flower sets its own level when it is imported, so import it first.
    importlib.import_module("flwr.app")
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _initialize(initialize: Initializer | None, *args: Any) -> None:
    # Ctrl-C reaches all processes of a terminal. Only the parent handles it, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_flower()
    pin_to_one_thread()
    if initialize is not None:
        initialize(*args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
