"""The keys of a data holder: one names images without giving them away, one signs the ledger's head."""

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
    """Two secrets of one data holder.

    Attributes:
        fingerprint: 32 bytes; keys the hashes that stand for images.
        signing: 32 bytes; seed of the Ed25519 key that signs heads.
    """

    fingerprint: bytes
    signing: bytes

    @classmethod
    @lru_cache(maxsize=1024)
    def simulated(cls, seed: int, name: str) -> "HolderKeys":
        """Keys of a simulated client, equal in each run of one seed; worth nothing outside a simulation."""
        parts = (hashlib.sha256(f"{purpose}\x1f{seed}\x1f{name}".encode()).digest() for purpose in ("images", "heads"))
        return cls(*parts)

    @classmethod
    def of_folder(cls, folder: Path) -> "HolderKeys":
        """Keys of a folder; made on first use, readable by their owner only.

        Raises:
            LedgerError: A key file is damaged, or open to others.
        """
        return cls(*(_read_or_make(folder / name) for name in ("fingerprint.key", "signing.key")))

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.signing)

    @cached_property
    def public(self) -> str:
        """The public half of the signing key, 64 hex digits."""
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @property
    def ledger_id(self) -> str:
        """32 hex digits that name the ledger: they follow from the public key."""
        return ledger_id_of(self.public)

    def sign(self, message: bytes) -> str:
        """An Ed25519 signature, 128 hex digits."""
        return self._private.sign(message).hex()

    def name_of(self, digest: bytes, kind: str) -> bytes:
        """What stands for an image in the ledger: HMAC-SHA256 of its digest, 32 bytes.

        Args:
            digest: SHA-256 of the file's bytes or of the pixels.
            kind: Which of the two.
        """
        return hmac.digest(self.fingerprint, kind.encode() + b"\0" + digest, "sha256")


def ledger_id_of(public: str) -> str:
    """The ledger id that belongs to a public key."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]


def is_signed(public: str, message: bytes, signature: str) -> bool:
    """Whether a signature is good; malformed ones are not."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read_or_make(file: Path) -> bytes:
    if not file.exists():
        # If another process was faster, its key counts.
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
