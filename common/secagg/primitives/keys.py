"""X25519 key agreement and HKDF, each key bound to its one purpose."""

import hmac
import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from common.secagg.primitives.domains import PROTOCOL, Domain, frame
from common.secagg.refusals import Refusal, SecureSumError

KEY_SIZE = 32


class AgreementKey:
    """An X25519 key of a 32-byte secret that no representation shows."""

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def agree(self, public_key: bytes) -> bytes:
        """Return what two parties share by their keys, 32 bytes.

        It is not a key yet. `derive_key` makes one for each purpose.

        Raises:
            SecureSumError: The public key is malformed, or forces a result that everybody knows.

        Source: RFC 7748, section 6.1 (the check for zero).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError:
            raise SecureSumError(Refusal.SETUP) from None


def derive_key(secret: bytes, domain: Domain, *parts: bytes | int | str) -> bytes:
    """Return the 32-byte key of one purpose by HKDF-SHA256.

    Source: RFC 5869. One block of output, so the expansion is a single HMAC.
    """
    extracted = hmac.digest(PROTOCOL, secret, "sha256")
    return hmac.digest(extracted, frame(domain, *parts) + b"\x01", "sha256")


def random_secret() -> bytes:
    """Return 32 bytes from the operating system."""
    return os.urandom(KEY_SIZE)
