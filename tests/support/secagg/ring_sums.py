"""Sums of words as the ring of a secure sum gives them."""

from collections.abc import Iterable

import numpy as np


def ring_sum(words: Iterable[np.ndarray], bits: int) -> np.ndarray:
    """Return the sum of words modulo 2^bits, (d,) uint64."""
    total = np.sum(np.stack(list(words)), axis=0, dtype=np.uint64)
    return np.asarray(total & np.uint64((1 << bits) - 1))
