"""Constant names that keep every use of a hash, key or signature apart.

The protocol's version stands in each of them. A change of what is hashed or signed needs a new version.
"""

import hashlib
from enum import Enum

PROTOCOL = b"bract secure sum 1"


class Domain(Enum):
    """The purposes for which bytes are hashed, signed or used as a key."""

    ROSTER = b"roster"
    SESSION = b"session"
    ADVERT = b"advert"
    VIEW = b"view"
    MASK_KEYS = b"mask keys"
    SEEDS = b"seed commitments"
    SEED = b"seed commitment"
    RING_ORDER = b"mask graph order"
    COMMITTEE_ORDER = b"committee order"
    SURVIVORS = b"survivors"
    BOX = b"sealed shares"
    BLIND = b"blinding between members"
    BLIND_ANSWER = b"blinding of one answer"
    BLIND_NEXT = b"blinding in the next round"
    UNMASK_REQUEST = b"unmask request"
    PAIR = b"pair of one round"
    PAIR_MASK = b"pairwise mask"
    SELF_MASK = b"self mask"


def frame(domain: Domain, *parts: bytes | int | str) -> bytes:
    """Return one unambiguous encoding of a purpose and its parts.

    Each part is preceded by its length. Two different lists of parts of one domain never give the same bytes, provided
    that a part keeps its type.

    >>> frame(Domain.SEED, "a", "bc") == frame(Domain.SEED, "ab", "c")
    False
    """
    pieces = [domain.value, *map(_encoded, parts)]
    return PROTOCOL + b"".join([len(piece).to_bytes(8, "big") + piece for piece in pieces])


def digest(domain: Domain, *parts: bytes | int | str) -> bytes:
    """Return the SHA-256 of a framed purpose, 32 bytes."""
    return hashlib.sha256(frame(domain, *parts)).digest()


def _encoded(part: bytes | int | str) -> bytes:
    if isinstance(part, int):
        return part.to_bytes(8, "big", signed=True)
    return part.encode() if isinstance(part, str) else part
