"""Requests to a server that change nothing there and send nothing about images."""

import base64
import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_MAX_BYTES = 65536
_ACTIVATE = "/v1/fleet/activate-node"


@dataclass(frozen=True)
class Address:
    """The address of a server, with a time limit.

    Attributes:
        host: Host name or IP address.
        port: TCP port.
        seconds: Time limit of each step.
    """

    host: str
    port: int
    seconds: float = 5.0

    @property
    def pair(self) -> tuple[str, int]:
        """Host and port for the functions of `socket`."""
        return self.host, self.port


@dataclass(frozen=True)
class Answer:
    """A server's answer to one request.

    Attributes:
        status: HTTP status.
        content: The first 64 KB of the body.
        date: Time of the server's clock; None if the server did not send it.
        ahead: Seconds by which this machine's clock is ahead of the server's; None if this is not known.
    """

    status: int
    content: bytes
    date: datetime | None
    ahead: float | None

    @property
    def code(self) -> int | None:
        """Flower's error code in the body, None without one."""
        try:
            code = json.loads(self.content)["code"]
        except (ValueError, KeyError, TypeError):
            return None
        return code if type(code) is int else None


def presented_certificate(address: Address) -> x509.Certificate | None:
    """Return the certificate that a server presents, unverified.

    It is for the operator to read, and must never be trusted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(address.pair, address.seconds) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secured,
        ):
            content = secured.getpeercert(binary_form=True)
            return None if content is None else x509.load_der_x509_certificate(content)
    except (OSError, ValueError):
        return None


def speaks_plain_http(address: Address) -> bool:
    """Return whether the server answers HTTP without TLS."""
    connection = http.client.HTTPConnection(*address.pair, timeout=address.seconds)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def ask_anything(address: Address, context: ssl.SSLContext) -> Answer:
    """Send a request that any server answers, to read its clock.

    It is for clients without a usable key.

    Raises:
        OSError: No connection, or no TLS.
        http.client.HTTPException: The answer is not HTTP.
    """
    return _ask(address, context, "GET", "/health", b"", {})


def ask_whether_admitted(address: Address, context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey) -> Answer:
    """Ask a SuperLink whether it knows a key, without activating a node.

    The request names a heartbeat interval of zero, which no server accepts. A server checks the key before the
    interval, and changes nothing. So the code of its answer tells whether it knows the key, and a running client is not
    disturbed.

    Raises:
        OSError: No connection, or no TLS.
        http.client.HTTPException: The answer is not HTTP.
    """
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.now(UTC).isoformat()
    signature = key.sign(now.encode("ascii"), ec.ECDSA(SHA256()))
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": base64.b64encode(public).decode("ascii"),
        "flwr-timestamp": now,
        "flwr-signature": base64.b64encode(signature).decode("ascii"),
    }
    return _ask(address, context, "POST", _ACTIVATE, activation_without_interval(public), headers)


def activation_without_interval(public: bytes) -> bytes:
    """Return a protobuf `ActivateNodeRequest` with a key and no interval.

    Field 1 is the public key. Field 2, the interval, stays zero and is left out.
    """
    size, length = len(public), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([1 << 3 | 2, *length, size]) + public


def _ask(
    address: Address, context: ssl.SSLContext, method: str, path: str, body: bytes, headers: dict[str, str]
) -> Answer:
    connection = http.client.HTTPSConnection(*address.pair, timeout=address.seconds, context=context)
    try:
        connection.connect()
        before = time.time()
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        after = time.time()
        date = _date_of(response.getheader("date"))
        # The header has whole seconds, rounded down, so the middle of that second is the best estimate.
        ahead = None if date is None else (before + after) / 2 - (date.timestamp() + 0.5)
        return Answer(response.status, response.read(_MAX_BYTES), date, ahead)
    finally:
        connection.close()


def _date_of(header: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
