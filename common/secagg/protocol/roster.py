"""The roster of identity keys and the signatures that are checked against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.secagg.primitives.domains import Domain, digest
from common.secagg.refusals import Refusal, SecureSumError

_KEY_SIZE = 32


class Identity:
    """A data holder's signing key, from a seed of 32 bytes.

    The representation of an identity does not show the seed.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes, as the roster holds it."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a framed message, 64 bytes."""
        return self._key.sign(message)


@dataclass(frozen=True)
class Roster:
    """The names and public identity keys of everyone who may take part.

    It reaches each holder through the holder's own channel, never from the server. A client's index is its place in
    `names`, which are sorted.
    """

    names: tuple[str, ...]
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, members: Mapping[str, bytes]) -> "Roster":
        """Return the roster of these names and keys.

        Raises:
            SecureSumError: A key has the wrong size, or two members have the same one.
        """
        names = tuple(sorted(members))
        keys = tuple(members[name] for name in names)
        # One holder with two seats would be two of the honest clients.
        if len(set(keys)) != len(keys) or any(len(key) != _KEY_SIZE for key in keys):
            raise SecureSumError(Refusal.ROSTER)
        return cls(names, keys)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all names and keys, 32 bytes."""
        return digest(Domain.ROSTER, *(part for member in zip(self.names, self.keys, strict=True) for part in member))

    def index_of(self, name: str) -> int:
        """Return a member's index.

        Raises:
            SecureSumError: The name is not on the roster.
        """
        if name not in self.names:
            raise SecureSumError(Refusal.ROSTER)
        return self.names.index(name)

    def check_index(self, index: int) -> None:
        """Refuse an index that is not on the roster.

        Raises:
            SecureSumError: It is not.
        """
        if not 0 <= index < len(self):
            raise SecureSumError(Refusal.ROSTER)

    def check_signature(self, index: int, message: bytes, signature: bytes) -> None:
        """Refuse a message that the member at an index did not sign.

        Raises:
            SecureSumError: The index is not on the roster, or the signature is not that member's.
        """
        self.check_index(index)
        if not _is_signed(self.keys[index], message, signature):
            raise SecureSumError(Refusal.SIGNATURE)


# In a simulation all clients of one process check the same signatures.
@lru_cache(maxsize=4096)
def _is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
