"""Repeatable random streams for everything that is *not* private noise.

Each stream is named by what it is for, so that its values depend on the root seed and that name alone, never on the
order of calls, the engine or the number of workers. Private noise and Poisson sampling never come from here: see
`common.privacy.noise`.
"""

import hashlib

import numpy as np


def public_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a generator that depends on the root seed and a purpose alone.

    A purpose is such as `("batches", "00003", 7)`. The same arguments give the same values everywhere.

    >>> a, b = public_stream(0, "cohort", 1), public_stream(0, "cohort", 1)
    >>> bool(a.random() == b.random())
    True
    """
    name = "\x1f".join([str(seed), *map(str, purpose)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def keyed_uniform(key: bytes, digests: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) for each item from its keyed hash.

    The number follows the content: renaming, reordering or adding other images does not move an image, and equal images
    always fall on the same side. The digests are (n, 32) uint8, SHA-256 of each item's decoded pixels.
    """
    out = np.empty(len(digests), dtype=np.float64)
    for row, digest in enumerate(digests):
        keyed = hashlib.blake2b(digest.tobytes(), key=key[:64], digest_size=8).digest()
        # 53 bits are what a float64 can hold exactly.
        out[row] = (int.from_bytes(keyed, "big") >> 11) * 2.0**-53
    return out
