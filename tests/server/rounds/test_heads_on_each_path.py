"""An older ledger, another one or a forged head is noticed whatever message brought it.

A head that is checked in training replies alone would let a restored ledger in at the enrollment, before a late round
or at the end. Drives `server.rounds.enrollment`, `server.rounds.closing_evaluation`, `server.late_joining`.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from common.config.secure_sum import SecureSum
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.codec import Declaration, Evaluation, encode_evaluation, encode_head
from common.messages.fields import LEDGER
from common.metrics import NoisedCounts
from server.aggregation.strategies import build_strategy
from server.federation import _head_keeper
from server.late_joining import LateJoinHandler
from server.rounds.closing_evaluation import ClosingEvaluation, close_at_clients, evaluate_at_clients
from server.rounds.enrollment import EnrolledClient, enroll_clients
from server.rounds.node_registry import NodeRegistry
from server.rounds.replies import Channel
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import DECLARED, PRIVATE, RUN, Say, app_of, declares, head_of
from tests.support.server.toy_clients import config_for

CLIENTS = {f"{n:05d}": EnrolledClient(Declaration(f"{n:05d}", **DECLARED), n + 2) for n in range(2)}
FORGED = replace(head_of(1, 12), signature="00" * 64)


def came_late(
    keeper: HeadKeeper, nodes: NodeRegistry | None, said: Say, secure: SecureSum | None = None
) -> tuple[list[str], dict[str, str]]:
    """Who joined a run of one client, and why the other did not."""
    joined: list[str] = []
    settings = SimpleNamespace(num_clients=2, max_num_units=None, is_local_dp=False, secure=secure)
    state = SimpleNamespace(clients={"00000": CLIENTS["00000"]}, config=settings, refusals={})
    state.join = lambda client, _: joined.append(client.declaration.name)
    channel = Channel(InProcessGrid(app_of({1: said}), 2, {}), PRIVATE, RUN, keeper, nodes)
    LateJoinHandler(channel, cast(RunState, state), turned_away=(), saved=lambda: None).poll(2)
    return joined, state.refusals


def test_a_late_client_with_an_older_forked_or_forged_ledger_is_turned_away(keeper: HeadKeeper) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    for head in (head_of(1, 8), head_of(1, 9, "b"), FORGED, head_of(77, 99)):
        assert came_late(keeper, None, declares(1, head)) == ([], {"client 00001": "LEDGER"})
    assert came_late(keeper, None, declares(1, head_of(1, 10))) == (["00001"], {})


def test_a_late_client_has_no_part_in_secure_sums(keeper: HeadKeeper) -> None:
    late = declares(1, head_of(1, 10))

    assert came_late(keeper, None, late, SecureSum.of(3, 1)) == ([], {"client 00001": "SETUP-OVER"})


def test_a_late_node_that_had_another_ledger_or_takes_a_name_is_turned_away(keeper: HeadKeeper, tmp_path: Path) -> None:
    nodes = NodeRegistry(tmp_path / "nodes.jsonl")
    nodes.check(3, "ward", head_of(77, 1).ledger)
    nodes.check(9, "taken", head_of(78, 1).ledger)

    assert came_late(keeper, nodes, declares(1, head_of(1, 9))) == ([], {"client 00001": "LEDGER"})
    assert came_late(keeper, nodes, declares(1, head_of(77, 9), name="taken")) == ([], {"node 3": "SAME-NAME"})
    assert came_late(keeper, nodes, declares(1, head_of(77, 9), name="ward")) == (["ward"], {})


def test_a_forged_head_binds_no_node_to_a_ledger(keeper: HeadKeeper, tmp_path: Path) -> None:
    nodes = NodeRegistry(tmp_path / "nodes.jsonl")
    grid = InProcessGrid(app_of({0: declares(0, head_of(0, 5)), 1: declares(1, FORGED)}), 2, {})

    meeting = enroll_clients(grid, 2, run_id=RUN, keeper=keeper, nodes=nodes)

    assert (list(meeting.clients), meeting.refusals) == (["00000"], {"client 00001": "LEDGER"})
    nodes.check(3, "00001", head_of(77, 1).ledger)  # it comes with its own ledger, for the first time


def ending(heads: dict[int, SignedHead]) -> ClientApp:
    """Clients that answer the last evaluation and the message that closes a run."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        content = RecordDict()
        if message.metadata.message_type == "evaluate":
            content = encode_evaluation(10, Evaluation(noised=NoisedCounts(np.array([[3, 1], [0, 2]]))))
        content[LEDGER] = encode_head(heads[int(context.node_config["partition-id"])])
        return Message(content, reply_to=message)

    app.evaluate()(answer)
    app.query("close")(answer)
    return app


def evaluated(keeper: HeadKeeper, heads: dict[int, SignedHead]) -> ClosingEvaluation:
    channel = Channel(InProcessGrid(ending(heads), 2, {}), PRIVATE, RUN, keeper)
    strategy = build_strategy(config_for("FedAvg", 2))
    return evaluate_at_clients(channel, strategy, {"w": np.zeros(2, np.float32)}, CLIENTS, 4)


@pytest.mark.parametrize("odd", [head_of(1, 8), head_of(1, 9, "b"), FORGED, head_of(77, 99)])
def test_a_closing_evaluation_with_an_older_forked_or_forged_ledger_does_not_count(
    keeper: HeadKeeper, odd: SignedHead
) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    closing = evaluated(keeper, {0: head_of(0, 5), 1: odd})

    assert (list(closing.by_client), closing.failures) == (["00000"], {"00001": "LEDGER"})
    assert keeper.latest(["00000", "00001"]) == {"00000": head_of(0, 5), "00001": head_of(1, 9)}


def test_a_closing_message_brings_the_last_head_and_an_older_one_is_heard(
    keeper: HeadKeeper, log: pytest.LogCaptureFixture
) -> None:
    keeper.accept([("00001", head_of(1, 9))])
    grid = InProcessGrid(ending({0: head_of(0, 7), 1: head_of(1, 8)}), 2, {})

    close_at_clients(Channel(grid, PRIVATE, RUN, keeper), CLIENTS)

    assert keeper.latest(["00000", "00001"]) == {"00000": head_of(0, 7), "00001": head_of(1, 9)}
    assert "left out: client 00001 came with an older copy" in log.text


def test_a_server_of_real_clients_keeps_heads_of_all_runs_and_syncs_them(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    real = _head_keeper(RunDirectory(tmp_path / "first"), simulated=False)
    assert real.accept([("00001", head_of(1, 9))]) == {}
    assert synced

    other_run = _head_keeper(RunDirectory(tmp_path / "second"), simulated=False)
    assert set(other_run.accept([("00001", head_of(1, 8))])) == {"00001"}
    synced.clear()
    simulated = _head_keeper(RunDirectory(tmp_path / "second"), simulated=True)
    assert simulated.accept([("00001", head_of(1, 8))]) == {}
    assert synced == []
