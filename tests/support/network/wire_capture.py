"""What crossed a wire, from a file of tcpdump: was everything TLS to one port, and is a secret in it?

Reads the classic pcap format (https://www.tcpdump.org/manpages/pcap-savefile.5.html) with Ethernet frames.
"""

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC = b"\xd4\xc3\xb2\xa1"  # little endian, microseconds
_ETHERNET = 1
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP, _HOP_BY_HOP, _ICMPV6 = 6, 0, 58
_NEIGHBOUR_TYPES = {*range(130, 138), 143}  # multicast listeners, routers, neighbours
_SYN = 2
_TLS_TYPES = range(20, 24)  # change cipher spec, alert, handshake, application data
_ALERT, _HANDSHAKE = 21, 22
_TLS_VERSIONS = range(0x0301, 0x0304)
_LONGEST_RECORD = 16_384 + 2_048

Endpoint = tuple[str, int]


class WireError(AssertionError):
    """Something crossed that may not."""


@dataclass
class Stream:
    """One direction of one TCP connection.

    Attributes:
        source: Who sent it.
        target: To whom.
        start: Sequence number of the first byte; None if the connection is older than the capture.
        pieces: Payload by its distance from the start.
    """

    source: Endpoint
    target: Endpoint
    start: int | None
    pieces: dict[int, bytes] = field(default_factory=dict)

    def payload(self) -> bytes:
        """All bytes in order, repeated ones once.

        Raises:
            WireError: Some are missing.
        """
        found = bytearray()
        for at in sorted(self.pieces):
            if at > len(found):
                raise WireError(f"{self.source} to {self.target}: bytes {len(found)} to {at} were not captured")
            found += self.pieces[at][len(found) - at :]
        return bytes(found)


@dataclass(frozen=True)
class WireFigures:
    """What a check saw: how many frames and connections, bytes of TLS each way, and who talked to the server."""

    frames: int
    connections: int
    bytes_up: int
    bytes_down: int
    clients: frozenset[str]


def check_wire(file: Path, server: Endpoint, secrets: Iterable[bytes] = ()) -> WireFigures:
    """Check that nothing but TLS to the server's port, and the search for neighbours, has crossed.

    Args:
        file: Written by tcpdump from before the first connection on.
        server: Address and port.
        secrets: Bytes that may be nowhere, neither in a frame nor across two.

    Raises:
        WireError: Something else crossed, a stream is no sequence of TLS records, or a secret is readable.
    """
    captured = list(frames(file))
    streams = tcp_streams(captured, server)
    payloads = {id(stream): stream.payload() for stream in streams}
    everything = b"".join([*captured, *payloads.values()])
    for secret in secrets:
        if secret in everything:
            raise WireError(f"{secret!r} is readable on the wire")
    for stream in streams:
        check_tls(payloads[id(stream)], f"{stream.source} to {stream.target}")
    up = [stream for stream in streams if stream.target == server]
    return WireFigures(
        frames=len(captured),
        connections=len(up),
        bytes_up=sum(len(payloads[id(stream)]) for stream in up),
        bytes_down=sum(len(payloads[id(stream)]) for stream in streams if stream.source == server),
        clients=frozenset(stream.source[0] for stream in up),
    )


def frames(file: Path) -> Iterator[bytes]:
    """Each captured frame; a last one that was cut off by a kill is left out.

    Raises:
        WireError: It is another kind of file, or a frame was captured in part.
    """
    content = file.read_bytes()
    if content[:4] != _MAGIC or struct.unpack_from("<I", content, 20)[0] != _ETHERNET:
        raise WireError(f"{file} is no capture of Ethernet")
    at = 24
    while at + 16 <= len(content):
        kept, sent = struct.unpack_from("<8xII", content, at)
        if kept != sent:
            raise WireError(f"a frame of {sent} bytes was captured in part")
        if at + 16 + kept > len(content):
            return
        yield content[at + 16 : at + 16 + kept]
        at += 16 + kept


def tcp_streams(captured: Iterable[bytes], server: Endpoint) -> list[Stream]:
    """Both directions of every connection with the server.

    Raises:
        WireError: A frame is neither of such a connection nor of the search for neighbours.
    """
    streams: list[Stream] = []
    current: dict[tuple[Endpoint, Endpoint], Stream] = {}
    for frame in captured:
        kind = int.from_bytes(frame[12:14], "big")
        if kind == _ARP or (kind == _IPV6 and _is_neighbour_traffic(frame[14:])):
            continue
        if kind != _IPV4 or frame[23] != _TCP:
            raise WireError(f"a frame that is neither TCP nor a search for neighbours crossed: {frame[:64].hex()}")
        _add_segment(frame[14:], server, streams, current)
    return streams


def _is_neighbour_traffic(packet: bytes) -> bool:
    next_header, at = packet[6], 40
    if next_header == _HOP_BY_HOP:
        next_header, at = packet[40], 48 + 8 * packet[41]
    return next_header == _ICMPV6 and packet[at] in _NEIGHBOUR_TYPES


def _add_segment(
    packet: bytes, server: Endpoint, streams: list[Stream], current: dict[tuple[Endpoint, Endpoint], Stream]
) -> None:
    segment = packet[4 * (packet[0] & 15) : int.from_bytes(packet[2:4], "big")]
    source_port, target_port, number = struct.unpack_from(">HHI", segment)
    source = (str(ipaddress.IPv4Address(packet[12:16])), source_port)
    target = (str(ipaddress.IPv4Address(packet[16:20])), target_port)
    if server not in (source, target):
        raise WireError(f"TCP from {source} to {target} crossed, and the server is {server}")
    is_start = bool(segment[13] & _SYN)
    known = current.get((source, target))
    if known is None or (is_start and known.start != (number + 1) % 2**32):
        known = current[source, target] = Stream(source, target, (number + 1) % 2**32 if is_start else None)
        streams.append(known)
    payload = segment[4 * (segment[12] >> 4) :]
    if not payload:
        return
    if known.start is None:
        raise WireError(f"the connection from {source} to {target} is older than the capture")
    at = (number - known.start) % 2**32
    if len(payload) > len(known.pieces.get(at, b"")):
        known.pieces[at] = payload


def check_tls(payload: bytes, who: str) -> None:
    """Check that bytes are TLS records, the first one a handshake; the last may be cut off.

    Args:
        payload: One direction of a connection, from its start.
        who: For the message.

    Raises:
        WireError: They are not.
    """
    at = 0
    while at + 5 <= len(payload):
        kind, version, length = struct.unpack_from(">BHH", payload, at)
        is_tls = kind in _TLS_TYPES and version in _TLS_VERSIONS and length <= _LONGEST_RECORD
        if not is_tls or (at == 0 and kind not in (_HANDSHAKE, _ALERT)):
            raise WireError(f"{who}: no TLS record at byte {at}: {payload[at : at + 40]!r}")
        at += 5 + length
    if 0 < len(payload) < 5 and payload[0] not in _TLS_TYPES:
        raise WireError(f"{who}: no TLS record: {payload!r}")


def middle_of(content: bytes, *, window: int = 24) -> bytes:
    """A piece from the middle of a file: too long to be there by accident, short enough to be in one frame."""
    start = max(0, len(content) // 2 - window // 2)
    return content[start : start + window]
