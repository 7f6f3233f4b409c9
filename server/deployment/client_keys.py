"""Public keys of clients."""

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigError
from common.system.fingerprints import key_fingerprint

# No key file is longer, in bytes.
_MAX_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class PublicKey:
    """Public key of a node.

    Attributes:
        line: The key in OpenSSH format, without a comment.
        pem: The key in PEM format, as Flower keeps it.
        comment: Comment after the key in its file, cut at 64 characters.
    """

    line: str
    pem: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, as `ssh-keygen -lf` prints it."""
        return key_fingerprint(self.line)


def read_public_key(file: Path) -> PublicKey:
    """Read a node's public key from a file.

    Args:
        file: File in OpenSSH format (as `bract client init` and `ssh-keygen` write it) or PEM.

    Raises:
        ConfigError: The file cannot be read, or holds a private key, something else, or a key of a kind that Flower
            does not accept.
    """
    try:
        with file.expanduser().open("rb") as stream:
            content = stream.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    # A private key that has left its owner is compromised, even if nobody meant to send it.
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{file} is a PRIVATE key. It has left its owner, so it is compromised. The client must make a new one "
            "and send the .pub file only. Delete all copies of this file, and revoke the client if it was admitted"
        )
    try:
        load = serialization.load_pem_public_key if content.startswith(b"-----") else serialization.load_ssh_public_key
        key = load(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{file} is not a public key: the client sends its .pub file, one line of text") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not key.curve.name.startswith("secp"):
        raise ConfigError(f"{file} is a key of another kind: nodes need a key on a NIST curve (ecdsa-sha2-nistp384)")
    return _public_key(key, _comment(content))


def key_of_pem(pem: bytes) -> PublicKey | None:
    """Return a key from Flower's database, None for an unreadable key."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return _public_key(key, "") if isinstance(key, ec.EllipticCurvePublicKey) else None


def check_client_name(name: str) -> str:
    """Return the name of a client if it is allowed.

    Raises:
        ConfigError: The name is not 1 to 64 letters, digits, dots, dashes and underscores, or its first character is
            not a letter or digit.
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
