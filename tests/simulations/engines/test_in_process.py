"""Pulls from the engine in one process that several callers share."""

import threading
import time
from collections.abc import Iterable
from itertools import cycle, islice

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


class Working:
    """A client app that works for some CPU seconds and remembers where."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.threads, self.answered, self.app = list(seconds), list[str](), 0, ClientApp()
        self.app.train()(self.train)

    def train(self, message: Message, _: Context) -> Message:
        self.threads.append(threading.current_thread().name)
        until = time.thread_time() + (self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])
        while time.thread_time() < until:
            pass
        self.answered += 1
        return Message(RecordDict(), reply_to=message)

    def ask(self, grid: InProcessGrid, times: int = 1, messages: int = len(NODES)) -> list[bool]:
        """Which messages were answered in this thread, in the order in which they began."""
        self.threads.clear()
        for _ in range(times):
            nodes = islice(cycle(NODES), messages)
            list(grid.pull_messages(grid.push_messages([Message(RecordDict(), node, "train") for node in nodes])))
        return [name == threading.current_thread().name for name in self.threads]


@pytest.mark.parametrize(
    ("seconds", "here"),
    [
        ([0.0], [True] * 12),
        # One alone may have loaded the data.
        ([0.03, 0.0], [True] * 12),
        ([0.03], [True] * 2 + [False] * 10),
    ],
)
def test_only_long_messages_are_answered_side_by_side(seconds: list[float], here: list[bool]) -> None:
    app = Working(*seconds)
    grid = InProcessGrid(app.app, len(NODES), {}, num_workers=2)

    assert app.ask(grid, times=2) == here
    grid.close()


def test_messages_that_have_become_short_are_answered_here_again() -> None:
    app = Working(0.03, 0.03, 0.03, 0.0)
    grid = InProcessGrid(app.app, len(NODES), {}, num_workers=2)

    here = app.ask(grid, messages=24)
    grid.close()

    assert here[:3] == [True, True, False]
    # All but the few that were in the pool already.
    assert here[-12:] == [True] * 12


def test_one_short_message_among_long_ones_leaves_the_rest_side_by_side() -> None:
    app = Working(0.03, 0.03, *[0.0, 0.03, 0.03, 0.03] * 5)
    grid = InProcessGrid(app.app, len(NODES), {}, num_workers=2)

    here = app.ask(grid, messages=22)
    grid.close()

    assert here == [True] * 2 + [False] * 20


def test_no_client_works_on_when_the_grid_is_closed() -> None:
    app = Working(0.05)
    grid = InProcessGrid(app.app, len(NODES), {}, num_workers=2, least_work=0)
    replies = iter(grid.pull_messages(grid.push_messages([Message(RecordDict(), node, "train") for node in NODES])))
    next(replies)

    replies.close()  # type: ignore[attr-defined]
    grid.close()
    answered = app.answered
    time.sleep(0.2)

    # A client that charges its ledger after this would do so behind the back of whoever copies it.
    assert app.answered == answered < len(NODES)
