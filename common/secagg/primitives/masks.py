"""Keystreams that hide words, one key for one mask."""

from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common.secagg.primitives.ring import Ring, Words

_COUNTER = bytes(16)


def keystream(key: bytes, num_bytes: int) -> bytes:
    """Return the first bytes of AES-256-CTR under a key that has no other use.

    Source: NIST SP 800-38A.
    """
    # The counter starts at zero each time. That is safe because no key makes two streams.
    return Cipher(algorithms.AES(key), modes.CTR(_COUNTER)).encryptor().update(_zeros(num_bytes))


def mask_words(key: bytes, ring: Ring, length: int) -> Words:
    """Return the mask of one key, uniform words of shape (length,).

    They are not reduced to the ring. Their sums are, before they leave.
    """
    return np.frombuffer(keystream(key, length * ring.dtype.itemsize), dtype=ring.dtype)


@lru_cache(maxsize=4)
def _zeros(num_bytes: int) -> bytes:
    return bytes(num_bytes)
