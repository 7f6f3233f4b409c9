"""Pulls from the engine in one process that several callers share."""

import threading
import time
from collections.abc import Iterable

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.engines.in_process import InProcessGrid

NODES = (2, 3, 4, 5, 6, 7)


def grid_of(app: ClientApp) -> InProcessGrid:
    return InProcessGrid(app, len(NODES), {}, num_workers=2, least_work=0)


def push(grid: InProcessGrid) -> Iterable[str]:
    return grid.push_messages([Message(RecordDict(), node, "query") for node in NODES])


def test_a_pull_that_nobody_reads_to_its_end_leaves_the_workers_to_others() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, _: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    grid = grid_of(app)
    abandoned, other = iter(grid.pull_messages(push(grid))), iter(grid.pull_messages(push(grid)))
    next(abandoned)
    next(other)

    abandoned.close()  # type: ignore[attr-defined]

    assert len(list(other)) == len(NODES) - 1
    assert len(list(grid.pull_messages(push(grid)))) == len(NODES)
    grid.close()


def test_a_grid_works_on_after_a_client_app_that_raised() -> None:
    app, faults = ClientApp(), [RuntimeError("broken")]

    @app.query()
    def query(message: Message, _: Context) -> Message:
        if faults:
            raise faults.pop()
        return Message(RecordDict(), reply_to=message)

    grid = grid_of(app)
    with pytest.raises(RuntimeError, match="broken"):
        list(grid.pull_messages(push(grid)))

    assert len(list(grid.pull_messages(push(grid)))) == len(NODES)
    grid.close()


def test_only_long_messages_are_answered_side_by_side() -> None:
    app, threads = ClientApp(), set[str]()

    @app.query()
    def query(message: Message, _: Context) -> Message:
        threads.add(threading.current_thread().name)
        return Message(RecordDict(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return query(message, context)

    grid, here = InProcessGrid(app, len(NODES), {}, num_workers=2), threading.current_thread().name
    for _ in range(2):
        list(grid.pull_messages(push(grid)))
    of_short = set(threads)

    threads.clear()
    list(grid.pull_messages(grid.push_messages([Message(RecordDict(), node, "train") for node in NODES])))
    grid.close()

    assert of_short == {here}
    # The first one on its own, because nobody knows yet how long it takes.
    assert len(threads) > 1
    assert here in threads
