"""Replies: sorted by name, and left out with the client that sent what was not agreed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import ClientFailure
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.codec import (
    CONFIG,
    Declaration,
    Evaluation,
    arrays_to_record,
    encode_head,
    encode_update,
    run_config,
)
from common.messages.fields import ARRAYS, LEDGER, Releases
from common.metrics import Counts
from server.rounds.enrollment import EnrolledClient
from server.rounds.replies import Channel, ReplyCollector
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import (
    DECLARED,
    PRIVATE,
    RUN,
    Say,
    app_of,
    fails,
    head_of,
    updates,
)


def gather(
    trained: Mapping[int, Say], keeper: HeadKeeper | None, releases: Releases = PRIVATE
) -> tuple[dict[str, Any], dict[str, str]]:
    grid = InProcessGrid(app_of({}, trained), 3, {})
    clients = {f"{n:05d}": EnrolledClient(Declaration(f"{n:05d}", **DECLARED), n + 2) for n in range(3)}
    gathering = ReplyCollector(Channel(grid, releases, RUN, keeper), clients, {"w": np.zeros(2, np.float32)})
    content = RecordDict({ARRAYS: arrays_to_record({"w": np.zeros(2, np.float32)}), CONFIG: run_config(RUN)})
    messages = [Message(content.copy(), client.node_id, "train") for client in clients.values()]
    return gathering.replies(messages[::-1])


def test_replies_are_sorted_by_name_whatever_order_they_come_in(keeper: HeadKeeper) -> None:
    good, failed = gather({n: updates(n, head_of(n, 5)) for n in range(3)}, keeper)

    assert list(good) == ["00000", "00001", "00002"]
    assert failed == {}
    for client, (reply, findings) in enumerate(good.values()):
        assert reply.content.array_records[ARRAYS]["w"].numpy().tolist() == [client, client]
        assert findings.noised.cells.tolist() == [3, 4]


@pytest.mark.parametrize("odd", [head_of(1, 8), head_of(1, 9, "b"), head_of(77, 99)], ids=["older", "fork", "other"])
def test_replies_leave_a_client_out_whose_ledger_is_not_what_it_was(
    keeper: HeadKeeper, odd: SignedHead, log: pytest.LogCaptureFixture
) -> None:
    keeper.accept([("00001", head_of(1, 9))])
    said = {n: updates(n, head_of(n, 5)) for n in (0, 2)} | {1: updates(1, odd)}

    good, failed = gather(said, keeper)

    assert list(good) == ["00000", "00002"]
    assert failed == {"00001": "LEDGER"}
    assert keeper.latest(["00001"])["00001"].seq == 9
    assert "left out: client 00001" in log.text


def test_replies_accept_the_same_head_again_as_a_repeated_reply_brings_it(keeper: HeadKeeper) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    _, failed = gather({n: updates(n, head_of(n, 9)) for n in range(3)}, keeper)

    assert failed == {}


def test_replies_leave_a_client_out_that_brings_no_head_or_a_broken_one(keeper: HeadKeeper) -> None:
    def broken(message: Message) -> Message:
        content = updates(2, head_of(2, 5))(message).content
        content[LEDGER] = ConfigRecord(dict(content.config_records[LEDGER]) | {"seq": "5"})
        return Message(content, reply_to=message)

    good, failed = gather({0: updates(0, head_of(0, 5)), 1: updates(1), 2: broken}, keeper)

    assert list(good) == ["00000"]
    assert failed == {"00001": "MESSAGE", "00002": "MESSAGE"}


def test_replies_leave_a_client_out_that_sends_exact_counts_in_a_private_run(keeper: HeadKeeper) -> None:
    def exact(message: Message) -> Message:
        content = encode_update({"w": np.zeros(2, np.float32)}, 10, Evaluation(Counts(np.eye(2, dtype=np.int64), 1.0)))
        content[LEDGER] = encode_head(head_of(1, 5))
        return Message(content, reply_to=message)

    good, failed = gather({0: updates(0, head_of(0, 5)), 1: exact, 2: fails(ClientFailure.POLICY)}, keeper)

    assert list(good) == ["00000"]
    assert failed == {"00001": "MESSAGE", "00002": "POLICY"}
