"""The limit of one thread for each client.

Small steps are faster with one thread, and give the same bits on every engine.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@cache
def _pin_blas() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)


def pin_to_one_thread() -> None:
    """Limit BLAS and a loaded torch to one thread in this process."""
    _pin_blas()
    # Importing torch here would cost seconds that a linear head does not need.
    torch = sys.modules.get("torch")
    # Another thread may be in the middle of importing it.
    if torch is not None and hasattr(torch, "set_num_threads") and torch.get_num_threads() != 1:
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
