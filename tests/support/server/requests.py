"""Made-up requests to the server's gate, that its tests share."""

import asyncio
from typing import Any

from server.deployment.request_filter import Gate

STRANGER = ("203.0.113.9", 40000)
SERVER = ("198.51.100.1", 9443)
HEARTBEAT = "/v1/fleet/send-node-heartbeat"
PUSH = "/v1/fleet/push-object"


def scope(path: str, client: Any = STRANGER, server: Any = SERVER, **headers: str) -> dict[str, Any]:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "client": client, "server": server, "headers": sent}


class App:
    """Reads the whole body, and answers 200."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.types: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.types.append(scope["type"])
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
        self.bodies.append(body)
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Caller:
    """One request: pieces of body, how many of them were taken, and what came back."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces) or [b""]
        self.taken = 0
        self.events: list[Any] = []

    async def receive(self) -> Any:
        if self.taken == len(self.pieces):
            return {"type": "http.disconnect"}
        self.taken += 1
        more = self.taken < len(self.pieces)
        return {"type": "http.request", "body": self.pieces[self.taken - 1], "more_body": more}

    async def send(self, event: Any) -> None:
        self.events.append(event)

    @property
    def status(self) -> Any:
        return self.events[0].get("status", self.events[0]["type"]) if self.events else None


class Stalled(Caller):
    """Sends the beginning of a body, and nothing more."""

    async def receive(self) -> Any:
        if self.taken < len(self.pieces):
            self.taken += 1
            return {"type": "http.request", "body": self.pieces[self.taken - 1], "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError


def ask(gate: Gate, asked: dict[str, Any], *pieces: bytes) -> Caller:
    caller = Caller(*pieces)
    asyncio.run(gate(asked, caller.receive, caller.send))
    return caller
