"""Pulls from the engine in one process that several callers share."""

from collections.abc import Iterable

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.engines.in_process import InProcessGrid

NODES = (2, 3, 4, 5, 6, 7)


def grid_of(app: ClientApp) -> InProcessGrid:
    return InProcessGrid(app, len(NODES), {}, num_workers=2)


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
