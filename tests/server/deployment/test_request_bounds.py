"""How much, and for how long, anybody may hold of the server."""

import asyncio
from typing import Any

import pytest

from server.deployment.request_filter import Gate
from tests.support.server.requests import HEARTBEAT, PUSH, STRANGER, App, Caller, Stalled, ask, scope


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
