"""Checks before a server starts."""

import errno
import ipaddress
import os
import socket
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from common.errors import ConfigError
from server.deployment.server_folder import ServerHome

_WARN_BEFORE = timedelta(days=30)


def check_start(home: ServerHome, *, now: datetime | None = None) -> list[str]:
    """Check keys, certificates and port.

    Args:
        home: Folder of the server.
        now: Time to check at, by default the present.

    Returns:
        Warnings, one sentence each.

    Raises:
        ConfigError: Other users can read a key, a certificate is missing, not valid now, not valid for the server's
            own address or does not fit its key, or the port is taken.
    """
    for file in (home.authority_key_file, home.key_file):
        _check_private(file)
    _check_port(home)
    return _check_certificate(home, now or datetime.now(UTC))


def _check_private(file: os.PathLike[str]) -> None:
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    # A key that others can read may have been copied already.
    if mode & 0o077:
        raise ConfigError(f"{file} can be read by others: chmod 600 {file} (and renew, if others use this machine)")


def _check_certificate(home: ServerHome, now: datetime) -> list[str]:
    renew = f"`bract server init {home.folder} --renew` makes a new one"
    try:
        authority = x509.load_pem_x509_certificate(home.authority_file.read_bytes())
        certificate = x509.load_pem_x509_certificate(home.certificate_file.read_bytes())
        key = serialization.load_pem_private_key(home.key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{home.folder}: a certificate or key cannot be read ({error}); {renew}") from None
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{home.key_file} does not belong to {home.certificate_file}: {renew}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{home.certificate_file} was not signed by {home.authority_file}: {renew}") from None
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{home.certificate_file} starts on {certificate.not_valid_before_utc}: is this machine's clock right?"
        )
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(f"{home.certificate_file} ended on {certificate.not_valid_after_utc:%Y-%m-%d}: {renew}")
    warnings = []
    if certificate.not_valid_after_utc - now < _WARN_BEFORE:
        warnings.append(f"the server's certificate ends on {certificate.not_valid_after_utc:%Y-%m-%d}: {renew}")
    valid_names = _names(certificate)
    # Without its own address in the certificate, the server's own processes could not connect to it.
    if _same_form(home.control_host) not in valid_names:
        raise ConfigError(f"{home.certificate_file} is not valid for {home.control_host}, where it listens: {renew}")
    missing = sorted(name for name in home.names if _same_form(name) not in valid_names)
    if missing:
        warnings.append(f"the server's certificate is not valid for {', '.join(missing)}: {renew}")
    return warnings


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {
        _same_form(str(name)) for kind in (x509.DNSName, x509.IPAddress) for name in names.get_values_for_type(kind)
    }


def _same_form(name: str) -> str:
    """Return one spelling for all spellings of a DNS name or IP address."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _check_port(home: ServerHome) -> None:
    try:
        family = socket.getaddrinfo(home.host, home.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((home.host, home.port))
    except socket.gaierror:
        raise ConfigError(f"{home.settings_file}: host {home.host!r} is not an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {home.port} is taken: stop the program that uses it, or change it in {home.settings_file}"
            ) from None
        raise ConfigError(f"cannot listen at {home.host} port {home.port}: {error.strerror}") from None
