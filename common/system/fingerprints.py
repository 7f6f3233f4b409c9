"""What two operators read to each other on the telephone: it must be the same on both sides."""

import base64
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the certificate's DER bytes, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def key_fingerprint(line: str) -> str:
    """SHA-256 of a public key, as `ssh-keygen -l` shows it.

    Args:
        line: The key in OpenSSH's format, with or without a comment.
    """
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
