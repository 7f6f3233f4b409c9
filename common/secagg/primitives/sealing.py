"""Sealed boxes that open for one receiver in one place."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.secagg.refusals import Refusal, SecureSumError

_NONCE = 12


def seal(key: bytes, content: bytes, place: bytes) -> bytes:
    """Return encrypted and authenticated bytes.

    `place` says which box this is. It does not travel in the box, and the receiver must give the same.

    Source: RFC 8439 (ChaCha20-Poly1305).
    """
    # One key makes one box. The random nonce keeps two boxes apart even if a crash makes it seal twice.
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, place)


def unseal(key: bytes, box: bytes, place: bytes) -> bytes:
    """Return what is in a box.

    Raises:
        SecureSumError: The box was changed, or made with another key or for another place.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(box[:_NONCE], box[_NONCE:], place)
    except (InvalidTag, ValueError):
        raise SecureSumError(Refusal.SHARES) from None
