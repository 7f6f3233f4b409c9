"""Who takes part: refusals are heard and the run goes on, disagreement stops it, older ledgers are left out."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from common.errors import ClientFailure, FederationError, LedgerError
from common.ledger.heads import HeadKeeper, SignedHead, read_heads, sign_head
from common.ledger.keys import HolderKeys
from common.ledger.ledger import Head
from common.metrics import Counts, NoisedCounts
from common.records import (
    CONFIG,
    RUN_ID,
    Declaration,
    Findings,
    arrays_to_record,
    encode_declaration,
    encode_head,
    encode_update,
    run_config,
)
from common.releases import ARRAYS, CLIENT, LEDGER, Releases
from server.gathering import Gathering, Wire
from server.meeting import Client, Meeting, meet_clients
from server.node_book import NodeBook, forget_node
from simulations.in_process import InProcessGrid

RUN = "ab" * 16
SHAPES: dict[str, tuple[int, ...]] = {"w": (2,)}
PRIVATE = Releases("dp-sgd", "private")
DECLARED: dict[str, Any] = {"num_units": 10, "classes": ("a", "b"), "input_shape": (2,), "backbone_hash": "cafe"}
Say = Callable[[Message], Message]


def head_of(client: int, seq: int, digit: str = "a") -> SignedHead:
    return sign_head(HolderKeys.simulated(0, str(client)), Head(seq, digit * 64))


def declares(client: int, head: SignedHead | None = None, **other: Any) -> Say:
    """Answers a query with a declaration, and with a head if there is one."""

    def say(message: Message) -> Message:
        content = encode_declaration(Declaration(**{"name": f"{client:05d}"} | DECLARED | other))
        if head is not None:
            content[LEDGER] = encode_head(head)
        return Message(content, reply_to=message)

    return say


def fails(failure: ClientFailure) -> Say:
    return lambda message: Message(Error(int(failure), failure.name), reply_to=message)


def updates(client: int, head: SignedHead | None = None) -> Say:
    """Answers a training message as clients of a private run do."""

    def say(message: Message) -> Message:
        findings = Findings(noised=NoisedCounts(np.array([3, 4])))
        content = encode_update({"w": np.full(2, client, dtype=np.float32)}, 10, findings)
        if head is not None:
            content[LEDGER] = encode_head(head)
        return Message(content, reply_to=message)

    return say


def app_of(queried: Mapping[int, Say], trained: Mapping[int, Say] | None = None) -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return queried.get(client, declares(client))(message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return (trained or {}).get(client, updates(client))(message)

    return app


class LossyGrid(InProcessGrid):
    """The last client's reply never arrives; every message that went out is kept."""

    sent: list[Message]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent = list(messages)
        ids = list(super().push_messages(self.sent))
        del self._replies[ids[-1]]
        return ids


def meet(queried: Mapping[int, Say], keeper: HeadKeeper | None = None, clients: int = 3) -> Meeting:
    if keeper is not None:  # who is not spoken of has a ledger as it should be
        queried = {n: declares(n, head_of(n, 5)) for n in range(clients)} | dict(queried)
    return meet_clients(InProcessGrid(app_of(queried), clients, {}), clients, run_id=RUN, keeper=keeper)


@pytest.fixture
def keeper(tmp_path: Path) -> HeadKeeper:
    return HeadKeeper([tmp_path / "heads.jsonl"])


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, at a level at which it shows refusals also where an earlier test has set another."""
    caplog.set_level(logging.ERROR, logger="bract.server")
    return caplog


def test_meet_clients_names_and_sorts_those_that_came() -> None:
    meeting = meet({0: declares(0, name="zoe"), 1: declares(1, name="ann"), 2: declares(2, name="max")})

    assert {name: client.node_id for name, client in meeting.clients.items()} == {"ann": 3, "max": 4, "zoe": 2}
    assert list(meeting.clients) == ["ann", "max", "zoe"]
    assert meeting.refusals == {}


@pytest.mark.parametrize("why", [ClientFailure.POLICY, ClientFailure.LEDGER, ClientFailure.BUNDLE])
def test_meet_clients_goes_on_without_a_client_that_refuses(why: ClientFailure, log: pytest.LogCaptureFixture) -> None:
    meeting = meet({1: fails(why)})

    assert list(meeting.clients) == ["00000", "00002"]
    assert meeting.refusals == {"node 3": why.name}
    assert f"node 3 does not take part: {why.name}" in log.text


@pytest.mark.parametrize("why", [why for why in ClientFailure if why.name not in ("POLICY", "LEDGER", "BUNDLE")])
def test_meet_clients_stops_when_a_client_fails_otherwise(why: ClientFailure) -> None:
    with pytest.raises(FederationError, match=f"could not declare itself: {why.name}"):
        meet({1: fails(why)})


def test_meet_clients_stops_when_everybody_refuses() -> None:
    with pytest.raises(FederationError, match="no client takes part: LEDGER, POLICY"):
        meet({0: fails(ClientFailure.POLICY), 1: fails(ClientFailure.LEDGER), 2: fails(ClientFailure.POLICY)})


def test_meet_clients_stops_when_two_have_one_name() -> None:
    with pytest.raises(FederationError, match="two clients call themselves '00000'"):
        meet({2: declares(2, name="00000")})


@pytest.mark.parametrize(
    ("field", "value"), [("classes", ("b", "a")), ("input_shape", (3,)), ("backbone_hash", "beef")]
)
def test_meet_clients_stops_when_clients_disagree(field: str, value: Any) -> None:
    with pytest.raises(FederationError, match=f"00000 and 00002 disagree on {field}"):
        meet({2: declares(2, **{field: value})})


def test_meet_clients_lets_sizes_differ() -> None:
    meeting = meet({2: declares(2, num_units=99)})

    assert meeting.clients["00002"].declaration.num_units == 99


def test_meet_clients_stops_when_a_reply_is_missing() -> None:
    grid = LossyGrid(app_of({}), 3, {})

    with pytest.raises(FederationError, match="only 2 of 3 clients declared"):
        meet_clients(grid, 3, run_id=RUN, wait_seconds=0.0)


def test_meet_clients_tells_every_client_the_run_and_nothing_else() -> None:
    grid = LossyGrid(app_of({}), 3, {})
    with pytest.raises(FederationError):
        meet_clients(grid, 3, run_id=RUN, wait_seconds=0.0)

    assert len(grid.sent) == 3
    for message in grid.sent:
        assert set(message.content) == {CONFIG}
        assert dict(message.content.config_records[CONFIG]) == {RUN_ID: RUN}


def test_meet_clients_stops_when_too_few_nodes_are_there() -> None:
    grid = InProcessGrid(app_of({}), 2, {})

    with pytest.raises(FederationError, match="num-clients=3 but only 2 nodes"):
        meet_clients(grid, 3, run_id=RUN, poll_seconds=0.0, wait_seconds=0.0)


@pytest.mark.parametrize("field", ["name", "num-units", "classes"])
def test_meet_clients_stops_when_a_declaration_lacks_a_field(field: str) -> None:
    def say(message: Message) -> Message:
        content = declares(1)(message).content
        del content.config_records[CLIENT][field]
        return Message(content, reply_to=message)

    with pytest.raises(FederationError, match=f"lacks '{field}'"):
        meet({1: say})


def test_meet_clients_keeps_heads_and_leaves_an_older_ledger_out(
    keeper: HeadKeeper, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    meeting = meet({n: declares(n, head_of(n, 5)) for n in range(3)}, keeper)

    assert list(meeting.clients) == ["00000", "00002"]
    assert meeting.refusals == {"client 00001": "LEDGER"}
    assert "older copy of its ledger" in log.text
    assert "client 00001 does not take part: LEDGER" in log.text
    kept = [(who, head.seq) for who, head in read_heads(tmp_path / "heads.jsonl")]
    assert kept == [("00001", 9), ("00000", 5), ("00002", 5)]


def test_meet_clients_leaves_a_client_out_that_comes_with_another_ledger(keeper: HeadKeeper) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    meeting = meet({1: declares(1, head_of(77, 10))}, keeper)

    assert meeting.refusals == {"client 00001": "LEDGER"}


def test_meet_clients_leaves_a_client_out_whose_head_is_signed_by_another(keeper: HeadKeeper) -> None:
    theirs, own = head_of(2, 5), head_of(1, 5)
    forged = SignedHead(own.ledger, 5, own.hash, own.public_key, theirs.signature)

    meeting = meet({1: declares(1, forged)}, keeper)

    assert meeting.refusals == {"client 00001": "LEDGER"}


def test_meet_clients_does_not_compare_with_a_client_that_was_left_out(keeper: HeadKeeper) -> None:
    keeper.accept([("00001", head_of(1, 9))])

    meeting = meet({1: declares(1, head_of(1, 5), backbone_hash="beef")}, keeper)

    assert list(meeting.clients) == ["00000", "00002"]


def test_meet_clients_stops_when_only_older_ledgers_came(keeper: HeadKeeper) -> None:
    keeper.accept([("00000", head_of(0, 9))])

    with pytest.raises(FederationError, match="no client takes part: LEDGER"):
        meet({0: declares(0, head_of(0, 8))}, keeper, clients=1)


def gather(
    trained: Mapping[int, Say], keeper: HeadKeeper | None, releases: Releases = PRIVATE
) -> tuple[dict[str, Any], dict[str, str]]:
    grid = InProcessGrid(app_of({}, trained), 3, {})
    clients = {f"{n:05d}": Client(Declaration(f"{n:05d}", **DECLARED), n + 2) for n in range(3)}
    gathering = Gathering(Wire(grid, releases, RUN, keeper), clients, SHAPES)
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
        content = encode_update({"w": np.zeros(2, np.float32)}, 10, Findings(Counts(np.eye(2, dtype=np.int64), 1.0)))
        content[LEDGER] = encode_head(head_of(1, 5))
        return Message(content, reply_to=message)

    good, failed = gather({0: updates(0, head_of(0, 5)), 1: exact, 2: fails(ClientFailure.POLICY)}, keeper)

    assert list(good) == ["00000"]
    assert failed == {"00001": "MESSAGE", "00002": "POLICY"}


def came(keeper: HeadKeeper | None, book: Path, *said: tuple[str, int], least: int | None = 1, **more: Any) -> Meeting:
    """A meeting of nodes with keys: what each calls itself, and whose ledger it comes with."""
    queried = {
        n: declares(n, None if keeper is None else head_of(ledger, 5), name=name)
        for n, (name, ledger) in enumerate(said)
    }
    grid = InProcessGrid(app_of(queried), len(said), {})
    return meet_clients(
        grid, len(said), run_id=RUN, keeper=keeper, nodes=NodeBook(book), least=least, wait_seconds=5.0, **more
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


def test_the_runs_own_list_of_classes_decides_where_it_is_one_against_one(tmp_path: Path) -> None:
    queried = {0: declares(0), 1: declares(1, classes=("x", "y"))}
    grid = InProcessGrid(app_of(queried), 2, {})

    meeting = meet_clients(grid, 2, run_id=RUN, least=1, classes=("a", "b"), wait_seconds=5.0)

    assert list(meeting.clients) == ["00000"]
    assert meeting.refusals == {"client 00001": "DISAGREES"}


def test_a_client_that_the_run_has_no_place_for_is_left_out(tmp_path: Path) -> None:
    queried = {0: declares(0), 1: declares(1, num_units=10**9)}
    grid = InProcessGrid(app_of(queried), 2, {})

    meeting = meet_clients(
        grid, 2, run_id=RUN, least=1, refuse=lambda one: "TOO-LARGE" if one.num_units > 99 else "", wait_seconds=5.0
    )

    assert meeting.refusals == {"client 00001": "TOO-LARGE"}


def test_a_damaged_list_of_nodes_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "nodes.jsonl"
    NodeBook(file).check(7, "ann", "ab")
    file.write_text(file.read_text() + '{"node": 8, "led')
    NodeBook(file).check(9, "bob", "cd")  # half a line that a crash left goes
    assert [json.loads(line)["node"] for line in file.read_text().splitlines()] == [7, 9]

    file.write_text("nonsense\n")
    with pytest.raises(LedgerError, match="list of nodes"):
        NodeBook(file)
