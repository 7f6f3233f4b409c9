"""The key pair by which a server knows this client's node."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from client.client_config import Site
from common.errors import ConfigError
from common.system.files import write_atomic


def make_node_key(site: Site) -> ec.EllipticCurvePrivateKey:
    """Make a client's key pair and keep an existing private key.

    Guarantee: an existing private key is never overwritten. A new one is readable by its owner only, from its first
    byte on.

    Args:
        site: The client; its folder exists.

    Raises:
        ConfigError: An existing key cannot be used, or the folder cannot be written.
    """
    try:
        if not site.key_file.exists():
            fresh = ec.generate_private_key(ec.SECP384R1())
            content = fresh.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            write_atomic(site.key_file, content, durable=True, mode=0o600, overwrite=False)
        key = read_node_key(site.key_file)
        if not site.public_key_file.exists():
            write_atomic(site.public_key_file, public_line(key, site.name) + b"\n", durable=True, mode=0o666)
    except OSError as error:
        raise ConfigError(f"the node's key {site.key_file} cannot be written ({error.strerror})") from None
    return key


def read_node_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a node.

    Raises:
        ConfigError: The file is missing, or is not an EC P-384 key in OpenSSH's format without a passphrase.
    """
    try:
        key = load_ssh_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{file} is damaged, has a passphrase, or is not a key in OpenSSH's format") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{file} is a key of another kind: servers admit EC P-384 keys only")
    return key


def public_line(key: ec.EllipticCurvePrivateKey, comment: str) -> bytes:
    """Return the public half of a key in OpenSSH's format, with a comment."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" " + comment.encode()


def is_public_half(file: Path, key: ec.EllipticCurvePrivateKey) -> bool:
    """Return whether a file holds the public half of a key.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        public = load_ssh_public_key(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        return False
    return public == key.public_key()
