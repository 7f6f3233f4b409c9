"""The federation's certificates: what other implementations make of them, and what is refused.

Drives `common.system.fingerprints`.
"""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from common.errors import ConfigError
from server.deployment.certificates import Certificate, fingerprint, new_authority, new_server_certificate

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return new_authority("fl.example.org")


def loaded(made: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made.certificate)


def verify(authority: Certificate, server: Certificate, name: str, when: datetime = NOW) -> None:
    """A second implementation's judgement, by the rules of public web certificates."""
    subject: x509.DNSName | x509.IPAddress
    try:
        subject = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    builder = PolicyBuilder().store(Store([loaded(authority)])).time(when)
    builder.build_server_verifier(subject).verify(loaded(server), [])


def handshake(authority: Certificate, server: Certificate, name: str, folder: Path) -> None:
    """A TLS handshake in memory, with OpenSSL at its strictest."""
    for file, content in (("ca.pem", authority.certificate), ("s.pem", server.certificate), ("s.key", server.key)):
        (folder / file).write_bytes(content)
    listens = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listens.load_cert_chain(folder / "s.pem", folder / "s.key")
    asks = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    asks.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asks.wrap_bio(to_client, to_server, server_hostname=name)
    peer = listens.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() == "TLSv1.3"
    client.write(b"hello")
    assert peer.read() == b"hello"


@pytest.mark.parametrize("name", ["fl.example.org", "192.0.2.7", "2001:db8::7", "localhost", "127.0.0.1", "::1"])
def test_certificate_is_good_for_its_names_and_this_machine(authority: Certificate, name: str, tmp_path: Path) -> None:
    server = new_server_certificate(authority, ["fl.example.org", "192.0.2.7", "2001:db8::7"], days=825)

    verify(authority, server, name)
    handshake(authority, server, name, tmp_path)


@pytest.mark.parametrize("name", ["other.example.org", "192.0.2.8", "example.org"])
def test_certificate_is_refused_for_other_names(authority: Certificate, name: str) -> None:
    server = new_server_certificate(authority, ["fl.example.org", "192.0.2.7"], days=825)

    with pytest.raises(VerificationError):
        verify(authority, server, name)


def test_certificate_is_refused_by_clients_of_another_authority(authority: Certificate) -> None:
    server = new_server_certificate(authority, [], days=825)

    with pytest.raises(VerificationError):
        verify(new_authority("fl.example.org"), server, "localhost")


@pytest.mark.parametrize(("after", "fine"), [(-0.5, True), (-2, False), (23, True), (25, False)])
def test_certificate_holds_from_an_hour_ago_for_its_days(authority: Certificate, after: float, fine: bool) -> None:
    server = new_server_certificate(authority, [], days=1, now=NOW)

    if fine:
        verify(authority, server, "localhost", NOW + timedelta(hours=after, seconds=1))
    else:
        with pytest.raises(VerificationError):
            verify(authority, server, "localhost", NOW + timedelta(hours=after))


def test_certificate_never_outlives_its_authority() -> None:
    old = new_authority("old", now=NOW - timedelta(days=3640))

    server = new_server_certificate(old, [], days=825, now=NOW)

    assert loaded(server).not_valid_after_utc == loaded(old).not_valid_after_utc
    with pytest.raises(ConfigError, match="authority's certificate ended"):
        new_server_certificate(old, [], days=825, now=NOW + timedelta(days=20))


def test_server_cannot_sign_another_server(authority: Certificate) -> None:
    server = new_server_certificate(authority, [], days=825)

    below = new_server_certificate(server, ["evil.example.org"], days=10)

    subject = x509.DNSName("evil.example.org")
    verifier = PolicyBuilder().store(Store([loaded(authority)])).time(NOW).build_server_verifier(subject)
    with pytest.raises(VerificationError):
        verifier.verify(loaded(below), [loaded(server)])


def test_authority_signs_servers_and_nothing_below(authority: Certificate) -> None:
    limits = loaded(authority).extensions.get_extension_for_class(x509.BasicConstraints)

    assert limits.critical
    assert (limits.value.ca, limits.value.path_length) == (True, 0)


def test_keys_and_serials_are_never_the_same(authority: Certificate) -> None:
    made = [new_server_certificate(authority, [], days=825) for _ in range(3)]

    assert len({loaded(one).serial_number for one in made}) == 3
    assert len({one.key for one in made}) == 3


@pytest.mark.parametrize(
    "name", ["https://x", "x:9443", "a b", "", "-", "x..y", "300.1.1.1", "*.org", "ü.org", "a" * 64]
)
def test_what_is_no_name_is_refused(authority: Certificate, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        new_server_certificate(authority, [name], days=1)


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_impossible_days_are_refused(authority: Certificate, days: int) -> None:
    with pytest.raises(ConfigError, match="1 to 3650"):
        new_server_certificate(authority, [], days=days)


def test_fingerprint_is_the_one_that_others_print() -> None:
    # Worked out with `openssl x509 -noout -fingerprint -sha256` over the certificate below.
    known = b"""-----BEGIN CERTIFICATE-----
MIIBozCCAUqgAwIBAgIUbqdOZr8sibmwNH9+H+F5/WHvgZMwCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTQnJhY3QgZmVkZXJhdGlvbiB2bTAeFw0yNjExMjUxNDAxMTNa
Fw0zNjExMjIxNDAxMTNaMB4xHDAaBgNVBAMME0JyYWN0IGZlZGVyYXRpb24gdm0w
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQq5RIAQNFQfDMPoNPIMzSyJze9VDbI
8xqWUD4XyeCsQzK9QgQQmvTcr986rFFj4vkyYbgkGaXcgAxtgKGnJmmxo2YwZDAd
BgNVHQ4EFgQUUYE2JNV2qe3K4y6EnM6CSjrO+ucwEgYDVR0TAQH/BAgwBgEB/wIB
ADAOBgNVHQ8BAf8EBAMCAQYwHwYDVR0jBBgwFoAUUYE2JNV2qe3K4y6EnM6CSjrO
+ucwCgYIKoZIzj0EAwIDRwAwRAIgVBBKQHV2ec29DNmMHb6qEVXy8i1Ji3RK9IGI
Q8KBtFcCIBZ9KxDa+aa4SIcLPtGrXxPyfq0kuR79Eq++oMY6vKF9
-----END CERTIFICATE-----
"""
    assert fingerprint(known) == (
        "DF:78:55:9D:24:55:B3:21:50:9D:A0:B9:3C:04:49:BF:92:ED:EF:35:BD:BA:4E:EA:15:23:36:89:DF:3F:7C:8B"
    )
