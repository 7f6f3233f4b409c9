"""Clients' public keys: reading what an operator was handed, and how a key is told from another."""

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigError
from common.system.fingerprints import key_fingerprint

_LARGEST = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class PublicKey:
    """A node's public key.

    Attributes:
        line: OpenSSH, without a comment.
        pem: As Flower keeps it.
        comment: What stood behind it in its file, cut at 64 characters.
    """

    line: str
    pem: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """SHA-256, as `ssh-keygen -lf` prints it."""
        return key_fingerprint(self.line)


def read_public_key(file: Path) -> PublicKey:
    """Read a node's public key.

    Args:
        file: OpenSSH (as `bract client init` and `ssh-keygen` write it) or PEM.

    Raises:
        ConfigError: It is a private key (which must then be thrown away), no public key, or one Flower does not take.
    """
    try:
        with file.expanduser().open("rb") as stream:
            content = stream.read(_LARGEST)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{file} is a PRIVATE key. It has left its owner: treat it as burnt. The client makes a new one and sends "
            "the .pub file only; delete this file wherever it has been, and revoke the client if it was admitted"
        )
    try:
        load = serialization.load_pem_public_key if content.startswith(b"-----") else serialization.load_ssh_public_key
        key = load(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{file} is no public key: the client sends its .pub file, one line of text") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not key.curve.name.startswith("secp"):
        raise ConfigError(f"{file}: nodes need a key on a NIST curve (ecdsa-sha2-nistp384), this is another kind")
    return _public_key(key, _comment(content))


def key_of_pem(pem: bytes) -> PublicKey | None:
    """A key as Flower keeps it; nothing if it cannot be read."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return _public_key(key, "") if isinstance(key, ec.EllipticCurvePublicKey) else None


def check_client_name(name: str) -> str:
    """The name, if it can name a client's key.

    Raises:
        ConfigError: It is not 1 to 64 letters, digits, dots, dashes and underscores, or starts with one of the latter.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: use 1 to 64 letters, digits, '.', '-', '_', the first a letter or digit")
    return name


def _public_key(key: ec.EllipticCurvePublicKey, comment: str) -> PublicKey:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(line, pem, comment)


def _comment(content: bytes) -> str:
    words = content.decode("utf-8", "replace").strip().split(None, 2)
    return "" if content.startswith(b"-----") or len(words) < 3 else words[2].splitlines()[0][:64]
