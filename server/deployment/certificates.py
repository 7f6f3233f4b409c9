"""A federation's own certificate authority, and the certificate that its server shows."""

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

# Clocks of clients may be behind: a certificate counts as valid for them from this long before it was made.
_BACKDATED = timedelta(hours=1)
_AUTHORITY_DAYS = 3650
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """A certificate with the private key that belongs to it, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(name: str, *, now: datetime | None = None) -> Certificate:
    """Make a certificate authority that can sign servers and nothing below them.

    Guarantee: EC P-256; path length 0; valid for ten years from an hour ago.

    Args:
        name: What its certificate is for, shown to whoever looks at it; cut at 64 characters.
        now: When it counts as made; the present if left out.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bract federation {name}"[:64])])
    start = (now or datetime.now(UTC)) - _BACKDATED
    made = (
        _builder(subject, subject, key.public_key(), start, start + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(made.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def new_server_certificate(
    authority: Certificate, names: Sequence[str], *, days: int, now: datetime | None = None
) -> Certificate:
    """Make a server's key, and have the authority sign its certificate.

    Guarantee: EC P-256; good for `names`, and always for this machine itself (localhost, 127.0.0.1, ::1); valid
    from an hour ago, and never longer than the authority.

    Args:
        authority: Who signs.
        names: DNS names and IP addresses by which clients reach the server.
        days: How long it is valid.
        now: When it counts as made; the present if left out.

    Raises:
        ConfigError: A name is neither DNS name nor IP address, `days` is not 1 to 3650, or the authority has ended.
    """
    alternatives = _alternatives(names)
    if not 1 <= days <= _AUTHORITY_DAYS:
        raise ConfigError(f"--days {days}: 1 to {_AUTHORITY_DAYS} are possible")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the authority's key is no EC key: it was not made by `bract server init`")
    start = (now or datetime.now(UTC)) - _BACKDATED
    end = min(start + _BACKDATED + timedelta(days=days), issuer.not_valid_after_utc)
    if end <= start:
        raise ConfigError(f"the authority's certificate ended on {end:%Y-%m-%d}: make a new server, clients join again")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bract server")])
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = (
        _builder(subject, issuer.subject, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return Certificate(made.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def fingerprint(certificate: bytes) -> str:
    """The fingerprint of a PEM certificate.

    Raises:
        ValueError: It is no PEM certificate.
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
    fine = all(label and len(label) <= 63 and label.replace("-", "").isalnum() for label in labels)
    if not fine or not name.isascii() or len(name) > 253 or name.replace(".", "").isdigit():
        raise ConfigError(f"--name {name!r}: neither a DNS name nor an IP address (no port, no https://)")
    return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
