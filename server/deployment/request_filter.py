"""What a stranger may ask of the server: the one port serves administration too, and Flower asks nobody who they are.

Flower 1.41 answers Control, Fleet and Runtime requests at one port, and without an account service it takes every
caller for the owner: whoever reaches the port could admit themselves, start a program on the server, or take its
tasks. This stands in front of it. The Fleet API, which checks each node's key, is open to other machines; all else
is for this machine itself.
"""

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
FLEET = "/v1/fleet/"
# What a node with a key of its own needs. Not among them: register-node and unregister-node, which are for nodes
# without one.
OPEN_TO_NODES = frozenset(
    FLEET + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# What a node without a key asks first. It would hang on a 403, and exits with our words on Flower's own code for this.
_KEYLESS = FLEET + "register-node"
# The largest honest request is one piece of an array, 5 MiB and a few hundred bytes.
LARGEST_BODY = 16 * 1024 * 1024
# Flower reads a body before it looks at the key, so strangers could fill the memory with many at once.
LARGEST_IN_FLIGHT = 64 * LARGEST_BODY
# What one machine may hold of it: a few pieces at once.
LARGEST_OF_ONE = 8 * LARGEST_BODY
# Nothing but these two carries more than a few lines.
_CARRIERS = frozenset({FLEET + "push-object", FLEET + "push-messages"})
_LARGEST_OTHER = 1024 * 1024
# Longer than 16 MiB take at 1 Mbit/s.
LONGEST_SECONDS = 180.0
# A proxy on this machine makes strangers look local; an honest one says so.
_PROXY_HEADERS = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host"})


class Gate:
    """ASGI middleware: lets nodes pass, keeps administration on this machine, and bounds what is read into memory.

    Guarantee: a request from another machine reaches the app only if its path is in `OPEN_TO_NODES`; no Fleet
    request, wherever from, hands the app more than `largest_body` bytes of body, whatever its headers say; all
    Fleet bodies of other machines together never hold more than `largest_in_flight`, those of one machine never more
    than `largest_of_one`, and none for longer than `longest_seconds`.
    """

    def __init__(
        self,
        app: App,
        *,
        largest_body: int = LARGEST_BODY,
        largest_in_flight: int = LARGEST_IN_FLIGHT,
        largest_of_one: int = LARGEST_OF_ONE,
        longest_seconds: float = LONGEST_SECONDS,
    ) -> None:
        self._app = app
        self._largest_body = largest_body
        self._largest_in_flight = largest_in_flight
        self._largest_of_one = largest_of_one
        self._longest_seconds = longest_seconds
        self._in_flight = 0
        self._held: dict[str, int] = {}
        self._log = RareWarnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        local = is_local(scope)
        if not local and (scope["type"] != "http" or scope["path"] not in OPEN_TO_NODES):
            self._log.warn(f"refused to {_who(scope)}, not this machine: {_what(scope)}")
            if scope["path"] == _KEYLESS:
                await _refuse(
                    scope, send, 412, "A node needs an admitted key: --auth-supernode-private-key.", code=2001
                )
            else:
                await _refuse(scope, send, 403, "Only clients' nodes may ask this server from another machine.")
        elif scope["type"] == "http" and scope["path"].startswith(FLEET):
            await self._within_bounds(scope, receive, send, local)
        else:
            await self._app(scope, receive, send)

    async def _within_bounds(self, scope: Scope, receive: Receive, send: Send, local: bool) -> None:
        """Read the body here, as far as it may go, and hand it on only if it is whole."""
        most = self._largest_body if scope["path"] in _CARRIERS else min(self._largest_body, _LARGEST_OTHER)
        if _declared_length(scope) > most:
            await self._too_large(scope, send, most)
            return
        body = bytearray()
        counted, peer = 0, _who(scope)
        until = asyncio.get_running_loop().time() + self._longest_seconds
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        event = await receive()
                except TimeoutError:
                    self._log.warn(f"too slow: {peer} took more than {self._longest_seconds:.0f} s for a request")
                    await _refuse(scope, send, 408, "A request may not take so long.")
                    return
                if event["type"] != "http.request":
                    return
                body += event.get("body", b"")
                if len(body) > most:
                    await self._too_large(scope, send, most)
                    return
                if not local:
                    self._in_flight += len(body) - counted
                    self._held[peer] = self._held.get(peer, 0) + len(body) - counted
                    counted = len(body)
                    if self._in_flight > self._largest_in_flight or self._held[peer] > self._largest_of_one:
                        self._log.warn(f"too much is being sent at once; {_who(scope)} was told to come again")
                        await _refuse(scope, send, 503, "Too much is being sent at once. Come again.")
                        return
                if not event.get("more_body", False):
                    break
            await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._let_go(peer, counted)

    def _let_go(self, peer: str, counted: int) -> None:
        self._in_flight -= counted
        left = self._held.get(peer, 0) - counted
        if left > 0:
            self._held[peer] = left
        else:
            self._held.pop(peer, None)

    async def _too_large(self, scope: Scope, send: Send, most: int) -> None:
        self._log.warn(f"refused to {_who(scope)}, larger than {most} bytes: {_what(scope)}")
        await _refuse(scope, send, 413, f"A request may have {most} bytes.")


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine itself.

    Guarantee: true only if the peer's address is loopback, or is the very address of this machine at which the
    connection arrived; never if it came through a proxy that says so. Headers can take trust away, never give it.

    Args:
        scope: Of ASGI; under uvicorn `client` and `server` are the two ends of the socket, as long as its handling of
            proxy headers is off (`superlink.py` sees to that).
    """
    if any(name.lower() in _PROXY_HEADERS for name, _ in scope.get("headers", ())):
        return False
    peer = _address(scope.get("client"))
    if peer is None:
        return False
    own = _address(scope.get("server"))
    return peer.is_loopback or (own is not None and not own.is_unspecified and peer == own)


def _address(end: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(end[0])
    except (ValueError, TypeError, IndexError):
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _declared_length(scope: Scope) -> int:
    """What the header says; it may lie, or be missing."""
    declared = [value for name, value in scope.get("headers", ()) if name.lower() == b"content-length"]
    return max((int(value) for value in declared if value.isdigit() and len(value) < 20), default=0)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then whatever comes after it (a disconnect)."""
    waiting: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return waiting.pop() if waiting else await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: int, why: str, **more: int) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    content = json.dumps({"detail": why, **more}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _who(scope: Scope) -> str:
    address = _address(scope.get("client"))
    return "somebody unknown" if address is None else str(address)


def _what(scope: Scope) -> str:
    """The path, so that a stranger cannot write lines into the log."""
    return ascii(str(scope.get("path", ""))[:80])


_SECONDS_BETWEEN_LINES = 10.0
# Flower's own logger: the line looks like its others, and goes wherever they go.
_LOGGER = logging.getLogger("flwr")


class RareWarnings:
    """Warnings that cannot fill a disk: at most one in ten seconds, which says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def warn(self, text: str) -> None:
        """Log the text, or count it."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._next, self._left_out = now + _SECONDS_BETWEEN_LINES, 0
        _LOGGER.warning("Gate: %s%s", text, more)
