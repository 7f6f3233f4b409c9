"""Secret keys of a data holder for naming images and signing heads."""

import contextlib
import hashlib
import hmac
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import LedgerError
from common.system.files import write_atomic

_SIZE = 32


@dataclass(frozen=True)
class HolderKeys:
    """The two secrets of one data holder.

    `fingerprint` is the HMAC key of the names that stand for images, `signing` the seed of the Ed25519 key that signs
    heads, 32 bytes each.
    """

    fingerprint: bytes
    signing: bytes

    @classmethod
    @lru_cache(maxsize=1024)
    def simulated(cls, seed: int, name: str) -> "HolderKeys":
        """Derive the keys of a simulated client from the run's seed.

        They repeat in each run of one seed, so they protect nothing outside a simulation.
        """
        parts = (hashlib.sha256(f"{purpose}\x1f{seed}\x1f{name}".encode()).digest() for purpose in ("images", "heads"))
        return cls(*parts)

    @classmethod
    def of_folder(cls, folder: Path) -> "HolderKeys":
        """Read the keys in a folder or make them on first use.

        Raises:
            LedgerError: A key file is damaged, or others can read it.
        """
        return cls(*(read_or_make_key(folder / name) for name in ("fingerprint.key", "signing.key")))

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.signing)

    @cached_property
    def public(self) -> str:
        """The public half of the signing key, 64 hex digits."""
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @property
    def ledger_id(self) -> str:
        """The ledger's id, 32 hex digits that follow from the public key."""
        return ledger_id_of(self.public)

    def sign(self, message: bytes) -> str:
        """Return the Ed25519 signature of a message, 128 hex digits."""
        return self._private.sign(message).hex()

    def name_of(self, digest: bytes, kind: str) -> bytes:
        """Return the 32-byte name that stands for an image in the ledger.

        It is an HMAC-SHA256, so without the key it says nothing about the image. `digest` is the SHA-256 of what `kind`
        names, which is `file`, `pixels`, or `content` for a whole data set.
        """
        return hmac.digest(self.fingerprint, kind.encode() + b"\0" + digest, "sha256")


def ledger_id_of(public: str) -> str:
    """Return the ledger id that belongs to a public key in hex digits."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]


def is_signed(public: str, message: bytes, signature: str) -> bool:
    """Return whether a signature is valid, False if it is malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_or_make_key(file: Path) -> bytes:
    """Return the 32 secret bytes in a file, made at first use.

    Raises:
        LedgerError: The file is damaged, or others can read it.
        OSError: It cannot be read or written.
    """
    if not file.exists():
        # If another process was faster, its key is used.
        with contextlib.suppress(FileExistsError):
            write_atomic(file, os.urandom(_SIZE), durable=True, mode=0o600, overwrite=False)
    return _read(file)


def _read(file: Path) -> bytes:
    if file.stat().st_mode & 0o077:
        raise LedgerError(f"{file} can be read by others: chmod 600 {file}")
    secret = file.read_bytes()
    if len(secret) != _SIZE:
        raise LedgerError(f"{file} is damaged: it must hold {_SIZE} bytes; restore it from your backup")
    return secret
