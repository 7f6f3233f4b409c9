"""What a stranger may ask: by made-up requests, and in front of Flower's real app."""

import asyncio
import importlib
import inspect
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from common.errors import FederationError
from server.deployment.gate import LARGEST_BODY, OPEN_TO_NODES, Gate, is_local
from server.deployment.rare_warnings import RareWarnings
from server.deployment.superlink import SERVER_OPTIONS, install_gate, main

STRANGER = ("203.0.113.9", 40000)
SERVER = ("198.51.100.1", 9443)
HEARTBEAT = "/v1/fleet/send-node-heartbeat"
PUSH = "/v1/fleet/push-object"
FORBIDDEN = [
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/control/stop-run",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-task-output",
    "/v1/fleet/unregister-node",
    "/v1/fleet/",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/push-object/",
    "//v1/control/start-run",
    "/v1/responses",
    "/health",
    "/docs",
    "/openapi.json",
    "",
]


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


@pytest.mark.parametrize("path", FORBIDDEN)
def test_stranger_reaches_nothing_but_the_fleet(path: str) -> None:
    app = App()

    caller = ask(Gate(app), scope(path))

    assert caller.status == 403
    assert (b"connection", b"close") in caller.events[0]["headers"]
    assert app.types == []


def test_node_without_a_key_is_told_so_in_a_way_that_ends_it() -> None:
    app = App()

    caller = ask(Gate(app), scope("/v1/fleet/register-node"))

    assert caller.status == 412  # on 403 Flower's node hangs
    assert (json.loads(caller.events[1]["body"])["code"], app.types) == (2001, [])


@pytest.mark.parametrize("path", sorted(OPEN_TO_NODES))
def test_stranger_reaches_what_nodes_need(path: str) -> None:
    app = App()

    caller = ask(Gate(app), scope(path), b"ab", b"cd")

    assert caller.status == 200
    assert app.bodies == [b"abcd"]


@pytest.mark.parametrize("path", ["/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task"])
@pytest.mark.parametrize(
    ("client", "server"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 9443)),
        (("127.8.9.1", 5), ("127.0.0.1", 9443)),
        (("::1", 5), ("::1", 9443)),
        (("::ffff:127.0.0.1", 5), ("::ffff:127.0.0.1", 9443)),
        (("198.51.100.1", 5), SERVER),
        (("::ffff:198.51.100.1", 5), SERVER),
        (("2001:db8::1", 5), ("2001:DB8:0::1", 9443)),
    ],
)
def test_this_machine_reaches_everything(path: str, client: Any, server: Any) -> None:
    app = App()

    assert ask(Gate(app), scope(path, client, server), b"x").status == 200
    assert app.bodies == [b"x"]


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (STRANGER, SERVER),
        (STRANGER, None),
        (None, SERVER),
        (None, None),
        (("testclient", 5), ("testclient", 9443)),
        (("", 0), ("", 0)),
        (("0.0.0.0", 5), ("0.0.0.0", 9443)),  # noqa: S104
        (("::", 5), ("::", 9443)),
        (("/run/socket", None), ("/run/socket", None)),
        (("198.51.100.2", 5), SERVER),
    ],
)
def test_whoever_cannot_be_placed_is_a_stranger(client: Any, server: Any) -> None:
    assert not is_local(scope("/", client, server))


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "via", "x_real_ip", "X_Forwarded_For"])
def test_headers_take_trust_away_and_never_give_it(header: str) -> None:
    assert is_local(scope("/", ("127.0.0.1", 5)))
    assert not is_local(scope("/", ("127.0.0.1", 5), **{header: "127.0.0.1"}))
    assert not is_local(scope("/", STRANGER, **{header: "127.0.0.1"}))


def test_websocket_of_a_stranger_is_closed() -> None:
    app = App()

    caller = ask(Gate(app), scope("/v1/fleet/pull-messages") | {"type": "websocket"})

    assert caller.events == [{"type": "websocket.close", "code": 1008}]
    assert app.types == []


def test_start_and_end_of_the_server_pass() -> None:
    app = App()

    ask(Gate(app), {"type": "lifespan"})

    assert app.types == ["lifespan"]


@pytest.mark.parametrize("client", [STRANGER, ("127.0.0.1", 5)])
def test_body_that_says_it_is_too_large_is_not_read(client: Any) -> None:
    app = App()

    caller = ask(Gate(app, largest_body=10), scope(HEARTBEAT, client, content_length="11"), b"x" * 11)

    assert (caller.status, caller.taken, app.bodies) == (413, 0, [])


@pytest.mark.parametrize("headers", [{}, {"content_length": "3"}, {"content_length": "-1"}, {"content_length": "1e3"}])
def test_body_that_lies_about_its_length_is_cut_off_where_it_is_too_large(headers: dict[str, str]) -> None:
    app = App()

    caller = ask(Gate(app, largest_body=10), scope(HEARTBEAT, **headers), *[b"xxx"] * 1000)

    assert (caller.status, caller.taken, app.bodies) == (413, 4, [])


def test_largest_body_passes() -> None:
    app = App()

    assert ask(Gate(app, largest_body=10), scope(HEARTBEAT, content_length="10"), b"x" * 10).status == 200
    assert app.bodies == [b"x" * 10]


def test_caller_who_leaves_midway_reaches_nothing() -> None:
    app = App()
    caller = Caller(b"ab")
    caller.taken = 1

    asyncio.run(Gate(app)(scope(HEARTBEAT), caller.receive, caller.send))

    assert (caller.events, app.types) == ([], [])


def test_strangers_together_cannot_fill_the_memory() -> None:
    async def crowd() -> list[Any]:
        app = App()
        app.go_on.clear()
        gate = Gate(app, largest_body=10, largest_in_flight=15)
        callers = [Caller(b"x" * 10), Caller(b"x" * 10), Caller(b"x" * 10), Caller(b"x" * 10)]
        places = [STRANGER, STRANGER, ("127.0.0.1", 5)]
        waiting = [
            asyncio.create_task(gate(scope(HEARTBEAT, place), caller.receive, caller.send))
            for caller, place in zip(callers, places, strict=False)
        ]
        for _ in range(10):
            await asyncio.sleep(0)
        app.go_on.set()
        await asyncio.gather(*waiting)
        await gate(scope(HEARTBEAT), callers[3].receive, callers[3].send)
        return [caller.status for caller in callers]

    assert asyncio.run(crowd()) == [200, 503, 200, 200]


def test_whoever_sends_too_slowly_is_let_go_and_holds_nothing() -> None:
    async def both() -> tuple[int, int]:
        gate = Gate(App(), largest_in_flight=15, longest_seconds=0.05)
        slow, honest = Stalled(b"x" * 12), Caller(b"y" * 12)
        waiting = asyncio.create_task(gate(scope(PUSH), slow.receive, slow.send))
        await waiting
        await gate(scope(PUSH, client=("203.0.113.7", 1)), honest.receive, honest.send)
        return slow.events[0]["status"], honest.events[0]["status"]

    assert asyncio.run(both()) == (408, 200)


def test_one_stranger_cannot_take_the_room_of_all() -> None:
    async def run() -> list[int]:
        gate = Gate(App(), largest_of_one=20, largest_in_flight=1000, longest_seconds=30.0)
        holds = [Stalled(b"x" * 9) for _ in range(3)]
        tasks = [asyncio.create_task(gate(scope(PUSH), one.receive, one.send)) for one in holds]
        for _ in range(10):
            await asyncio.sleep(0)
        honest = Caller(b"y" * 9)
        await gate(scope(PUSH, client=("203.0.113.7", 1)), honest.receive, honest.send)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [len(holds[0].events), len(holds[1].events), holds[2].events[0]["status"], honest.events[0]["status"]]

    assert asyncio.run(run()) == [0, 0, 503, 200]


def test_only_pushes_may_be_large() -> None:
    async def status(path: str) -> int:
        caller = Caller(b"x" * 2_000_000)
        await Gate(App())(scope(path), caller.receive, caller.send)
        return int(caller.events[0]["status"])

    assert [asyncio.run(status(path)) for path in (HEARTBEAT, PUSH)] == [413, 200]


def test_refusals_are_logged_as_one_line_that_the_stranger_cannot_write(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(App())

    with caplog.at_level(logging.WARNING, logger="flwr"):
        logging.getLogger("flwr").addHandler(caplog.handler)
        for number in range(50):
            ask(gate, scope(f"/x\nINFO: all is well {number}" + "y" * 500))
        logging.getLogger("flwr").removeHandler(caplog.handler)

    lines = {record.getMessage() for record in caplog.records}
    assert len(lines) == 1
    assert "203.0.113.9" in min(lines)
    assert "\n" not in min(lines)
    assert len(min(lines)) < 200


def test_what_was_not_logged_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    log = RareWarnings(lambda: now[0])

    with caplog.at_level(logging.WARNING, logger="flwr"):
        logging.getLogger("flwr").addHandler(caplog.handler)
        for _ in range(7):
            log.warn("a")
        now[0] += 10
        log.warn("b")
        logging.getLogger("flwr").removeHandler(caplog.handler)

    assert list(dict.fromkeys(record.getMessage() for record in caplog.records)) == [
        "Gate: a",
        "Gate: b (6 more since the last such line)",
    ]


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's real app behind the gate."""
    from flwr.superlink import extensions
    from flwr.superlink.main import create_app

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    install_gate()
    return create_app()


@pytest.mark.parametrize("path", ["control/register-node", "control/start-run", "runtime/acquire-task"])
def test_flowers_own_app_is_behind_the_gate(flower: Any, path: str) -> None:
    async def post(client: tuple[str, int]) -> httpx.Response:
        transport = httpx.ASGITransport(flower, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="https://fl.example.org") as caller:
            return await caller.post(f"/v1/{path}", headers={"content-type": "application/protobuf"})

    stranger = asyncio.run(post(STRANGER))
    local = asyncio.run(post(("127.0.0.1", 5)))

    assert stranger.status_code == 403
    assert "another machine" in stranger.json()["detail"]
    assert "another machine" not in local.text
    assert local.status_code != 415


def test_flower_without_the_hook_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink import extensions
    from flwr.superlink import main as superlink_main

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(superlink_main, "_get_middleware", list)

    with pytest.raises(FederationError, match="no place for the gate"):
        install_gate()


def test_flowers_fleet_is_the_one_the_gate_knows() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    fleet = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}

    assert fleet == OPEN_TO_NODES | {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_flower_starts_uvicorn_by_the_name_that_we_replace() -> None:
    text = inspect.getsource(importlib.import_module("flwr.superlink.cli.flower_superlink"))

    assert text.count("uvicorn.run(") == 1
    assert "import uvicorn\n" in text
    assert set(SERVER_OPTIONS) <= set(inspect.signature(uvicorn.run).parameters)


def test_server_runs_with_our_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink import extensions

    told: dict[str, Any] = {}
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(uvicorn, "run", lambda **options: told.update(options))
    module = importlib.import_module("flwr.superlink.cli.flower_superlink")
    monkeypatch.setattr(module, "flower_superlink", lambda: uvicorn.run(app="app", access_log=True))

    main()

    assert told == {"app": "app"} | SERVER_OPTIONS


def test_largest_honest_push_is_well_below_the_bound() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    weights = np.random.default_rng(0).standard_normal(5_000_000).astype(np.float32)
    record = RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})

    sizes = [len(piece.deflate()) for piece in get_all_nested_objects(record).values()]

    assert sum(sizes) > weights.nbytes
    assert max(sizes) < LARGEST_BODY / 3
