"""Certificates of a federation's authority and of its server."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError
from common.system.fingerprints import certificate_fingerprint

# A certificate is valid from this long before it was made, because clocks of clients may be behind.
_BACKDATED = timedelta(hours=1)
_AUTHORITY_DAYS = 3650
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """A certificate with its private key, both in PEM."""

    certificate: bytes
    key: bytes


def new_authority(name: str, *, now: datetime | None = None) -> Certificate:
    """Make a certificate authority that can sign servers but no other authorities.

    Guarantee: EC P-256, path length 0, valid for ten years from an hour ago.

    Args:
        name: Name of the federation, shown in the certificate. The text there is cut at 64 characters.
        now: Time of making, by default the present.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bract federation {name}"[:64])])
    start = (now or datetime.now(UTC)) - _BACKDATED
    certificate = (
        _builder(subject, subject, key.public_key(), start, start + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def new_server_certificate(
    authority: Certificate, names: Sequence[str], *, days: int, now: datetime | None = None
) -> Certificate:
    """Make a key and a certificate for a server, signed by the authority.

    Guarantee: EC P-256, valid for `names` and always for this machine itself (localhost, 127.0.0.1, ::1), from an
    hour ago and never longer than the authority.

    Args:
        authority: Certificate and key of the authority that signs.
        names: DNS names and IP addresses by which clients reach the server.
        days: Days that the certificate is valid, 1 to 3650.
        now: Time of making, by default the present.

    Raises:
        ConfigError: A name is neither a DNS name nor an IP address, `days` is out of range, or the authority's
            certificate has ended or its key was not made by `new_authority`.
    """
    alternatives = _alternatives(names)
    if not 1 <= days <= _AUTHORITY_DAYS:
        raise ConfigError(f"--days {days}: 1 to {_AUTHORITY_DAYS} are possible")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the authority's key is not an EC key: it was not made by `bract server init`")
    start = (now or datetime.now(UTC)) - _BACKDATED
    end = min(start + _BACKDATED + timedelta(days=days), issuer.not_valid_after_utc)
    if end <= start:
        raise ConfigError(f"the authority's certificate ended on {end:%Y-%m-%d}: make a new server, clients join again")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bract server")])
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return Certificate(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of a PEM certificate.

    Raises:
        ValueError: The bytes are not a PEM certificate.
    """
    return certificate_fingerprint(x509.load_pem_x509_certificate(certificate))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in dict.fromkeys([*names, *_ALWAYS])]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removesuffix(".").split(".")
    valid = all(label and len(label) <= 63 and label.replace("-", "").isalnum() for label in labels)
    # Digits and dots alone are a mistyped IP address.
    if not valid or not name.isascii() or len(name) > 253 or name.replace(".", "").isdigit():
        raise ConfigError(f"--name {name!r}: neither a DNS name nor an IP address (no port, no https://)")
    return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
