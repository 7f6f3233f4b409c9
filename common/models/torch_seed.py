"""Torch's global generator, which threads share: one at a time, and put back as it was."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Run a block whose draws from torch's global generator depend on the seed alone.

    Guarantee: no other block of this kind runs meanwhile in another thread, and the
    generator is afterwards in the state it was in before.

    Args:
        seed: Not negative, below 2^63.
    """
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
