"""A name and a ledger belong to the node that came with them first."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import LedgerError
from common.ledger.signed_heads import HeadKeeper
from server.rounds.enrollment import Enrollment, enroll_clients
from server.rounds.node_registry import NodeRegistry, forget_node
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import (
    RUN,
    app_of,
    declares,
    head_of,
)


def came(
    keeper: HeadKeeper | None, book: Path, *said: tuple[str, int], min_clients: int | None = 1, **more: Any
) -> Enrollment:
    """A meeting of nodes with keys: what each calls itself, and whose ledger it comes with."""
    queried = {
        n: declares(n, None if keeper is None else head_of(ledger, 5), name=name)
        for n, (name, ledger) in enumerate(said)
    }
    grid = InProcessGrid(app_of(queried), len(said), {})
    return enroll_clients(
        grid,
        len(said),
        run_id=RUN,
        keeper=keeper,
        nodes=NodeRegistry(book),
        min_clients=min_clients,
        wait_seconds=5.0,
        **more,
    )


def test_a_node_that_comes_with_another_ledger_is_left_out_under_any_name(keeper: HeadKeeper, tmp_path: Path) -> None:
    book = tmp_path / "nodes.jsonl"

    assert list(came(keeper, book, ("zoe", 0), ("ann", 1)).clients) == ["ann", "zoe"]
    assert list(came(keeper, book, ("zoe", 0), ("bob", 1)).clients) == ["bob", "zoe"]  # a client may be renamed
    assert came(keeper, book, ("zoe", 0), ("cid", 77)).refusals == {"client cid": "LEDGER"}
    assert list(came(keeper, book, ("zoe", 0), ("bob", 1)).clients) == ["bob", "zoe"]


@pytest.mark.parametrize("ledgers", [True, False])
def test_a_node_that_takes_anothers_name_is_left_out_and_the_other_is_not(
    keeper: HeadKeeper, tmp_path: Path, ledgers: bool
) -> None:
    book, kept = tmp_path / "nodes.jsonl", keeper if ledgers else None
    came(kept, book, ("zoe", 0), ("ann", 1))

    meeting = came(kept, book, ("zoe", 0), ("zoe", 1))

    assert {name: client.node_id for name, client in meeting.clients.items()} == {"zoe": 2}
    assert meeting.refusals == {"node 3": "SAME-NAME"}
    assert list(came(kept, book, ("zoe", 0), ("ann", 1)).clients) == ["ann", "zoe"]


def test_a_name_that_two_nodes_want_first_is_neither_ones_and_no_head_is_kept_under_it(
    keeper: HeadKeeper, tmp_path: Path
) -> None:
    book = tmp_path / "nodes.jsonl"

    meeting = came(keeper, book, ("zoe", 0), ("zoe", 1), ("max", 2))

    assert list(meeting.clients) == ["max"]
    assert meeting.refusals == {"node 2": "SAME-NAME", "node 3": "SAME-NAME"}
    assert list(came(keeper, book, ("zoe", 0), ("ann", 1), ("max", 2)).clients) == ["ann", "max", "zoe"]


def test_a_revoked_nodes_name_may_be_another_keys(tmp_path: Path) -> None:
    book = tmp_path / "nodes.jsonl"
    came(None, book, ("zoe", 0), ("ann", 1))

    forget_node(book, 2)

    assert {name: client.node_id for name, client in came(None, book, ("max", 0), ("zoe", 1)).clients.items()} == {
        "max": 2,
        "zoe": 3,
    }
    forget_node(tmp_path / "not-there.jsonl", 2)


def test_a_damaged_list_of_nodes_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "nodes.jsonl"
    NodeRegistry(file).check(7, "ann", "ab")
    file.write_text(file.read_text() + '{"node": 8, "led')
    NodeRegistry(file).check(9, "bob", "cd")  # half a line that a crash left goes
    assert [json.loads(line)["node"] for line in file.read_text().splitlines()] == [7, 9]

    file.write_text("nonsense\n")
    with pytest.raises(LedgerError, match="list of nodes"):
        NodeRegistry(file)
