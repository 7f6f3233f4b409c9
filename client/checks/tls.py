"""The check of a server's certificate, with its own words for each fault."""

import socket
import ssl
from datetime import UTC, datetime

from cryptography import x509

from client.checks.check_result import Finding, fail, ok, warn
from client.checks.server_probe import Address, presented_certificate, speaks_plain_http
from client.client_config import SITE_FILE, Site
from client.setup.ca_certificate import read_authority
from common.errors import ConfigError
from common.system.fingerprints import certificate_fingerprint

# Of OpenSSL's X509_V_ERR.
_NOT_YET, _EXPIRED, _WRONG_NAME, _WRONG_NUMBER = 9, 10, 62, 64
# No issuer, a signature that does not fit, self-signed.
_OTHER_AUTHORITY = (2, 7, 18, 19, 20, 21)
_SOON_DAYS = 14
_CLOCK = "if that date is not right, this machine's clock is wrong"


def check_tls(site: Site, address: Address) -> tuple[ssl.SSLContext | None, Finding]:
    """Check that the server's certificate is signed by the authority.

    Returns:
        The context to connect with, None after a failure, and the finding.
    """
    if not site.authority:
        return None, fail(
            "TLS",
            "client.toml names no authority: anybody could pose as the server",
            f"ask the server's operator for ca.pem, put it beside {site.folder / SITE_FILE} and name it as authority",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        authority = read_authority(site.authority_file)
        context.load_verify_locations(site.authority_file)
    except (ConfigError, OSError) as error:
        return None, fail("TLS", str(error), "ask the server's operator for the authority's certificate again")
    ended = next((each for each in authority if each.not_valid_after_utc < datetime.now(UTC)), None)
    if ended is not None and len(authority) == 1:
        return None, fail(
            "TLS",
            f"the authority's certificate {site.authority_file} ended on {ended.not_valid_after_utc:%Y-%m-%d}",
            f"ask the server's operator for the new one; {_CLOCK}",
        )
    ends = _end_of_certificate(site, address, context)
    if isinstance(ends, Finding):
        return None, ends
    if (ends - datetime.now(UTC)).days < _SOON_DAYS:
        return context, warn(
            "TLS",
            f"the server's certificate ends on {ends:%Y-%m-%d}: from then on no client can connect",
            "tell the server's operator to renew it",
        )
    prints = ", ".join(certificate_fingerprint(each)[:11] for each in authority)
    return context, ok("TLS", f"the server's certificate is for {address.host}, signed by the authority ({prints}...)")


def _end_of_certificate(site: Site, address: Address, context: ssl.SSLContext) -> datetime | Finding:
    """Return the last day of a good certificate or a failure."""
    try:
        with (
            socket.create_connection(address.pair, address.seconds) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secured,
        ):
            certificate = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return _judge_certificate(site, address, error)
    except OSError as error:
        return _no_tls(address, error)
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)


def _no_tls(address: Address, error: OSError) -> Finding:
    if speaks_plain_http(address):
        return fail(
            "TLS",
            f"the server at {address.host}:{address.port} speaks plain HTTP: anybody on the way could read and "
            "change the messages",
            "ask the server's operator to start it with TLS (`bract server` does), or for the right port",
        )
    why = getattr(error, "reason", None) or type(error).__name__
    return fail(
        "TLS",
        f"no TLS with {address.host}:{address.port} ({why})",
        "is the port right? Does a proxy or firewall break TLS open on the way?",
    )


def _judge_certificate(site: Site, address: Address, error: ssl.SSLCertVerificationError) -> Finding:
    shown, code = presented_certificate(address), error.verify_code
    if code == _EXPIRED:
        day = "" if shown is None else f" on {shown.not_valid_after_utc:%Y-%m-%d}"
        return fail(
            "TLS", f"the server's certificate has expired{day}", f"the server's operator must renew it; {_CLOCK}"
        )
    if code == _NOT_YET:
        day = "" if shown is None else f" before {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return fail(
            "TLS", f"the server's certificate is not valid yet{day}", f"{_CLOCK}; else wait, or have it renewed"
        )
    if code in (_WRONG_NAME, _WRONG_NUMBER):
        names = "" if shown is None else f", it is for {', '.join(_names(shown)) or 'nothing'}"
        return fail(
            "TLS",
            f"the server's certificate is not for {address.host}{names}",
            "use one of these names as superlink in client.toml, or have the server's operator add this one to it",
        )
    if code in _OTHER_AUTHORITY:
        issuer = "" if shown is None else f" (its issuer calls itself {shown.issuer.rfc4514_string()!r})"
        return fail(
            "TLS",
            f"the server's certificate is not signed by the authority in {site.authority_file}{issuer}",
            "do not start: either the server's operator has a new authority and must send it to you, or somebody "
            "stands in between. Compare the fingerprints by telephone",
        )
    return fail(
        "TLS",
        f"the server's certificate is not accepted ({error.verify_message})",
        "send this line to the server's operator",
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
