"""What a stranger may ask, by made-up requests."""

import json
import logging
from typing import Any

import pytest

from server.deployment.request_filter import Gate, RareWarnings, is_local
from server.deployment.superlink_api import OPEN_TO_NODES
from tests.support.server.requests import SERVER, STRANGER, App, ask, scope

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
