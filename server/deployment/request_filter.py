"""Filter of requests in front of Flower's SuperLink, called the gate.

Flower answers administration (Control, Runtime) and nodes (Fleet) at one port. Without an account service it takes
every caller for the owner, who may admit keys, start programs on the server, and take its tasks. The gate lets other
machines use only the Fleet API, which checks each node's key. Everything else is for this machine itself.
"""

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from server.deployment import superlink_api as api
from server.deployment.gate.push_quota import PushQuota

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# The largest honest request is one piece of an array, 5 MiB and a few hundred bytes.
LARGEST_BODY = 16 * 1024 * 1024
# Flower reads a body before it checks the key, so many strangers at once could fill the memory.
LARGEST_IN_FLIGHT = 64 * LARGEST_BODY
# One machine sends a few pieces at once.
LARGEST_OF_ONE = 8 * LARGEST_BODY
_LARGEST_OTHER = 1024 * 1024
# A body of 16 MiB takes less at 1 Mbit/s.
LONGEST_SECONDS = 180.0
# A proxy on this machine makes strangers look local. An honest proxy sends one of these headers.
_PROXY_HEADERS = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host"})


class Gate:
    """ASGI middleware that keeps administration local and bounds request bodies.

    Guarantee: a request from another machine reaches the app only if its path is in `OPEN_TO_NODES`. No Fleet request
    hands the app more than `largest_body` bytes of body, whatever its headers state. Fleet bodies of other machines
    never hold more than `largest_in_flight` bytes together, and those of one machine never more than
    `largest_of_one`, and reading one never takes more than `longest_seconds`. With a `quota`, a push beyond it does not
    reach the app.
    """

    def __init__(
        self,
        app: App,
        *,
        largest_body: int = LARGEST_BODY,
        largest_in_flight: int = LARGEST_IN_FLIGHT,
        largest_of_one: int = LARGEST_OF_ONE,
        longest_seconds: float = LONGEST_SECONDS,
        quota: PushQuota | None = None,
    ) -> None:
        self._app = app
        self._quota = quota
        self._largest_body = largest_body
        self._largest_in_flight = largest_in_flight
        self._largest_of_one = largest_of_one
        self._longest_seconds = longest_seconds
        self._in_flight = 0
        self._held: dict[str, int] = {}
        self._log = RareWarnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on to the app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        local = is_local(scope)
        if not local and (scope["type"] != "http" or scope["path"] not in api.OPEN_TO_NODES):
            self._log.warn(f"refused to {_peer(scope)}, not this machine: {_path(scope)}")
            if scope["path"] == api.KEYLESS:
                text = "A node needs an admitted key: --auth-supernode-private-key."
                await _refuse(scope, send, api.KEYLESS_STATUS, text, code=api.KEYLESS_CODE)
            else:
                await _refuse(scope, send, 403, "From another machine this server accepts only clients' nodes.")
        elif scope["type"] == "http" and scope["path"].startswith(api.FLEET):
            await self._within_bounds(scope, receive, send, local)
        else:
            await self._app(scope, receive, send)

    async def _within_bounds(self, scope: Scope, receive: Receive, send: Send, local: bool) -> None:
        """Read the whole body within its bounds before the app sees the request."""
        limit = self._largest_body if scope["path"] in api.CARRIERS else min(self._largest_body, _LARGEST_OTHER)
        if _declared_length(scope) > limit:
            await self._too_large(scope, send, limit)
            return
        body = bytearray()
        counted, peer = 0, _peer(scope)
        until = asyncio.get_running_loop().time() + self._longest_seconds
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        event = await receive()
                except TimeoutError:
                    self._log.warn(f"too slow: {peer} took more than {self._longest_seconds:.0f} s for a request")
                    await _refuse(scope, send, 408, "The request took too long.")
                    return
                if event["type"] != "http.request":
                    return
                body += event.get("body", b"")
                # The header may be missing or wrong, so the bytes that arrive are counted too.
                if len(body) > limit:
                    await self._too_large(scope, send, limit)
                    return
                if not local:
                    self._in_flight += len(body) - counted
                    self._held[peer] = self._held.get(peer, 0) + len(body) - counted
                    counted = len(body)
                    if self._in_flight > self._largest_in_flight or self._held[peer] > self._largest_of_one:
                        self._log.warn(f"too much data at once; {peer} was told to try again later")
                        await _refuse(scope, send, 503, "Too much data at once. Try again later.")
                        return
                if not event.get("more_body", False):
                    break
            await self._within_quota(scope, bytes(body), receive, send)
        finally:
            self._let_go(peer, counted)

    async def _within_quota(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Refuse a push beyond its node's quota or pass the request on."""
        quota, path = self._quota, str(scope["path"])
        if quota is None or path not in api.COUNTED:
            await self._app(scope, _replay(body, receive), send)
            return
        events: list[Event] = []

        async def keep(event: Event) -> None:
            events.append(event)

        async with quota.turn(path, body):
            refusal = quota.refusal(path, body)
            if refusal is None:
                await self._app(scope, _replay(body, receive), keep)
                if any(event.get("status") == 200 for event in events):
                    quota.count(path, body, b"".join(event.get("body", b"") for event in events))
        if refusal is not None:
            self._log.warn(f"refused to {_peer(scope)}: {_path(scope)}: {refusal.reason}")
            await _refuse(scope, send, refusal.status, refusal.reason)
        # Nothing is sent before it is counted: a node pushes as soon as it has the last byte of the reply.
        for event in events:
            await send(event)

    def _let_go(self, peer: str, counted: int) -> None:
        self._in_flight -= counted
        left = self._held.get(peer, 0) - counted
        if left > 0:
            self._held[peer] = left
        else:
            self._held.pop(peer, None)

    async def _too_large(self, scope: Scope, send: Send, limit: int) -> None:
        self._log.warn(f"refused to {_peer(scope)}, larger than {limit} bytes: {_path(scope)}")
        await _refuse(scope, send, 413, f"A request may have at most {limit} bytes.")


def is_local(scope: Scope) -> bool:
    """Return whether a request comes from this machine itself.

    Guarantee: true only if the peer's address is loopback, or equals the address of this machine at which the
    connection arrived. Never true for a proxy that identifies itself.

    Args:
        scope: ASGI scope of the request. Its `client` and `server` must be the two addresses of the socket, so
            uvicorn's handling of proxy headers must be off (see `superlink_main.SERVER_OPTIONS`).
    """
    # Headers can only take trust away, since the peer writes them.
    if any(name.lower() in _PROXY_HEADERS for name, _ in scope.get("headers", ())):
        return False
    peer = _address(scope.get("client"))
    if peer is None:
        return False
    own = _address(scope.get("server"))
    return peer.is_loopback or (own is not None and not own.is_unspecified and peer == own)


def _address(socket_address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(socket_address[0])
    except (ValueError, TypeError, IndexError):
        return None
    # A socket for both families shows IPv4 peers as ::ffff:a.b.c.d.
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _declared_length(scope: Scope) -> int:
    """Return the length that the header states (0 without one)."""
    declared = [value for name, value in scope.get("headers", ()) if name.lower() == b"content-length"]
    return max((int(value) for value in declared if value.isdigit() and len(value) < 20), default=0)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that first returns the body that was read."""
    unread: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return unread.pop() if unread else await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: int, reason: str, **extra: int) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    content = json.dumps({"detail": reason, **extra}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _peer(scope: Scope) -> str:
    address = _address(scope.get("client"))
    return "an unknown address" if address is None else str(address)


def _path(scope: Scope) -> str:
    """Return the path of a request for the log, escaped and cut short."""
    # Otherwise a stranger could write whole lines into the log.
    return ascii(str(scope.get("path", ""))[:80])


_SECONDS_BETWEEN_LINES = 10.0
# With Flower's own logger these lines look like its others, and go to the same files.
_LOGGER = logging.getLogger(api.LOGGER)


class RareWarnings:
    """Log of warnings with at most one line in ten seconds.

    Strangers cause these warnings, and must not be able to fill the disk. A line states how many were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def warn(self, text: str) -> None:
        """Log a warning, at most one in ten seconds."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        left_out = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._next, self._left_out = now + _SECONDS_BETWEEN_LINES, 0
        _LOGGER.warning("Gate: %s%s", text, left_out)
