"""Blinding that cancels only if all responders answer the same request."""

from collections.abc import Iterable

import numpy as np

from common.secagg.primitives.domains import Domain
from common.secagg.primitives.keys import KEY_SIZE, derive_key
from common.secagg.primitives.masks import keystream
from common.secagg.primitives.shamir import PRIME

_LIMBS = KEY_SIZE // 4


def blinding_of(request: bytes, length: int, keys: Iterable[tuple[int, bytes]]) -> list[int]:
    """Return one field element for each of `length` clients.

    Over all responders these elements sum to zero, provided that each pair of them blinds the same request. So answers
    to different survivor sets cannot be mixed, and no single answer says anything.

    Args:
        request: Digest of the request.
        length: Elements to make.
        keys: A sign and a pair's key for each other responder, where the two of a pair have opposite signs.
    """
    # Limbs of 32 bits add up in 64 without loss, for any number of responders there can be.
    limbs = np.zeros((length, _LIMBS), dtype=np.int64)
    for sign, key in keys:
        stream = keystream(derive_key(key, Domain.BLIND_ANSWER, request), length * KEY_SIZE)
        words = np.frombuffer(stream, dtype="<u4").reshape(length, _LIMBS)
        (np.add if sign > 0 else np.subtract)(limbs, words, out=limbs)
    return [sum(limb << 32 * place for place, limb in enumerate(row)) % PRIME for row in limbs.tolist()]
