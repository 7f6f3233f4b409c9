"""The certificate of the authority that must have signed a server's own."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import ConfigError


def read_authority(file: Path) -> tuple[x509.Certificate, ...]:
    """Return the certificates of an authority's file, at least one.

    Raises:
        ConfigError: The file is missing, is not a PEM file of certificates, holds a private key, or one of its
            certificates may not sign others.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"the authority's certificate {file} cannot be read ({error.strerror})") from None
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{file} holds a private key: ask the server's operator for the authority's certificate alone, and tell "
            "them that this key is not secret any more"
        )
    try:
        certificates = tuple(x509.load_pem_x509_certificates(content))
    except ValueError:
        raise ConfigError(f"{file} holds no certificate in PEM format") from None
    for certificate in certificates:
        if not _may_sign(certificate):
            raise ConfigError(
                f"{file} holds a certificate that may not sign others ({certificate.subject.rfc4514_string()}): ask "
                "the server's operator for the one of the authority, often called ca.pem or ca.crt"
            )
    return certificates


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def as_pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    """Return the bytes of a PEM file that holds these certificates alone."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
