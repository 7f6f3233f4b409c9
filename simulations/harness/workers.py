"""Processes that work side by side, one thread each, and end with whoever started them."""

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

Begin = Callable[..., object]


@contextmanager
def worker_pool(workers: int, begin: Begin | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; on leaving, whatever they are at is dropped.

    Args:
        workers: How many.
        begin: Called once in each, with `given`; picklable.
        given: Its arguments.

    Raises:
        ConfigError: A process was killed, most likely for want of memory.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (begin, *given))
    try:
        yield pool
    except BrokenProcessPool:
        raise ConfigError("a worker was killed, most likely for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def quiet_flower() -> None:
    """Flower's strategies say something in each round, and an audit has thousands."""
    importlib.import_module("flwr.app")  # sets its own level when first imported
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _begin(begin: Begin | None, *given: Any) -> None:
    """Ctrl-C is the parent's affair, and a worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_flower()
    pin_to_one_thread()
    if begin is not None:
        begin(*given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
