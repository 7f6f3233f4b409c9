"""Seeded use of torch's global generator."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# All threads share torch's generator, and a draw in another thread would change the values here.
_lock = threading.RLock()


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Run a block whose draws from torch's global generator depend on the seed alone.

    Guarantee: no other thread runs such a block at the same time, and afterwards the generator has its earlier state
    again.
    """
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
