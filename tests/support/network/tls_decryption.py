"""What one side of a captured TLS connection said, for who has its keys.

A program that runs with the environment of `writing_keys_to` writes down the secrets of its connections. Reads TLS 1.3
(RFC 8446) with AES-256-GCM, which is what Python and OpenSSL agree on.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.support.network.wire_capture import WireError

_HANDSHAKE, _APPLICATION = 22, 23
_FINISHED = 20
_SECRET_SIZE = 48
_PHASES = ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0")
# Random number of a connection's first message -> name of a secret -> secret.
TlsKeys = Mapping[bytes, Mapping[str, bytes]]


def writing_keys_to(file: Path) -> dict[str, str]:
    """Return an environment under which a Python program writes the secrets of its connections to a file."""
    path = filter(None, [str(Path(__file__).with_name("tls_keylog")), os.environ.get("PYTHONPATH")])
    return {"SSLKEYLOGFILE": str(file), "PYTHONPATH": os.pathsep.join(path)}


def read_keys(file: Path) -> TlsKeys:
    """Read the secrets of all connections that a client has written down."""
    found: dict[bytes, dict[str, bytes]] = {}
    for line in file.read_text().splitlines():
        name, random, secret = line.split() if not line.startswith("#") and line else ("", "", "")
        found.setdefault(bytes.fromhex(random), {})[name] = bytes.fromhex(secret)
    return found


def decrypted(payload: bytes, keys: TlsKeys) -> bytes:
    """Return what a client has sent on one connection, without TLS; a last record may be cut off.

    Args:
        payload: All bytes from the client, from the first on.
        keys: Of that client's connections.

    Raises:
        WireError: The keys are missing, or another version or another cipher was used.
    """
    if len(payload) < 43:
        return b""
    try:
        secrets = [keys[payload[11:43]][phase] for phase in _PHASES]
    except KeyError:
        raise WireError("the keys of a connection were not written down") from None
    if {len(secret) for secret in secrets} != {_SECRET_SIZE}:
        raise WireError("a connection does not use AES-256-GCM")
    found, at, phase, number = bytearray(), 0, 0, 0
    while at + 5 <= len(payload):
        kind, length = payload[at], struct.unpack_from(">H", payload, at + 3)[0]
        head, body = payload[at : at + 5], payload[at + 5 : at + 5 + length]
        at += 5 + length
        if kind != _APPLICATION or len(body) < length:
            continue
        inner = _opened(secrets[phase], number, head, body).rstrip(b"\0")
        number += 1
        if inner[-1] == _APPLICATION:
            found += inner[:-1]
        elif phase == 0 and inner[-1] == _HANDSHAKE and inner[0] == _FINISHED:
            phase, number = 1, 0
    return bytes(found)


def _opened(secret: bytes, number: int, head: bytes, body: bytes) -> bytes:
    key, start = _derived(secret, b"key", 32), _derived(secret, b"iv", 12)
    nonce = bytes(a ^ b for a, b in zip(start, number.to_bytes(12, "big"), strict=True))
    return AESGCM(key).decrypt(nonce, body, head)


def _derived(secret: bytes, label: bytes, length: int) -> bytes:
    label = b"tls13 " + label
    return HKDFExpand(SHA384(), length, struct.pack(">HB", length, len(label)) + label + b"\0").derive(secret)
