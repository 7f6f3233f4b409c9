"""Fingerprints of keys and certificates that two operators compare by telephone."""

import base64
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def key_fingerprint(line: str) -> str:
    """Return the SHA-256 of a key in OpenSSH's format as `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
