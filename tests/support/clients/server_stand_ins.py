"""Servers that a client's checks meet: with good and bad certificates, clocks and answers. All on this machine."""

import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ADMITTED, UNKNOWN = (400, 2003), (412, 2004)
Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Authority:
    """Signs the certificates of servers."""

    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    name: str = "test authority"

    def certificate(self, *, until: int = 30) -> bytes:
        subject = _name(self.name)
        return _sign(subject, self.key, subject, self.key, (-60, until), ca=True)

    def server(self, folder: Path, *, valid: tuple[int, int] = (-30, 30), host: str = "127.0.0.1") -> Path:
        """A file with a server's certificate and key, valid for days from and until today."""
        key = ec.generate_private_key(ec.SECP256R1())
        content = _sign(_name("server"), key, _name(self.name), self.key, valid, host=host)
        file = folder / f"server-{id(key)}.pem"
        file.write_bytes(content + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return file


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _sign(
    subject: x509.Name,
    key: Key,
    issuer: x509.Name,
    by: Key,
    valid: tuple[int, int],
    *,
    ca: bool = False,
    host: str = "",
) -> bytes:
    begin, end = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days) for days in valid)
    draft = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    draft = draft.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    draft = draft.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if host:
        number = host.replace(".", "").isdecimal()
        name = x509.IPAddress(ipaddress.ip_address(host)) if number else x509.DNSName(host)
        draft = draft.add_extension(x509.SubjectAlternativeName([name]), critical=False)
    return draft.sign(by, SHA256()).public_bytes(Encoding.PEM)


@dataclass
class Server:
    """What a server does, and what it was asked."""

    answer: tuple[int, int] = ADMITTED
    clock: float = 0.0
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, b'{"status": "ok"}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            server.asked.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            status, code = server.answer
            self._reply(status, json.dumps({"code": code, "detail": "as a SuperLink says it"}).encode())

        def _reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=server.clock)
            return format_datetime(now, usegmt=True)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not like a certificate hangs up: that is what is tested."""


@contextmanager
def serving(certificate: Path | None, behaviour: Server | None = None) -> Iterator[Server]:
    """A server on a free port of this machine; plain HTTP without a certificate."""
    server = behaviour or Server()
    listener = _Quiet(("127.0.0.1", 0), _handler(server))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
