"""Who takes part: refusals are heard and the run goes on, disagreement stops it, older ledgers are left out."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from common.errors import ClientFailure, FederationError
from common.ledger.signed_heads import HeadKeeper, SignedHead, read_heads
from common.messages.codec import CONFIG, PROTOCOL, PROTOCOL_VERSION, RUN_ID
from common.messages.fields import CLIENT
from server.rounds.enrollment import enroll_clients
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import (
    RUN,
    LossyGrid,
    app_of,
    declares,
    fails,
    head_of,
    meet,
)


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
        enroll_clients(grid, 3, run_id=RUN, wait_seconds=0.0)


def test_meet_clients_tells_every_client_the_run_and_nothing_else() -> None:
    grid = LossyGrid(app_of({}), 3, {})
    with pytest.raises(FederationError):
        enroll_clients(grid, 3, run_id=RUN, wait_seconds=0.0)

    assert len(grid.sent) == 3
    for message in grid.sent:
        assert set(message.content) == {CONFIG}
        assert dict(message.content.config_records[CONFIG]) == {RUN_ID: RUN, PROTOCOL: PROTOCOL_VERSION}


def test_meet_clients_stops_when_too_few_nodes_are_there() -> None:
    grid = InProcessGrid(app_of({}), 2, {})

    with pytest.raises(FederationError, match="num-clients=3 but only 2 nodes"):
        enroll_clients(grid, 3, run_id=RUN, poll_seconds=0.0, wait_seconds=0.0)


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


def test_the_runs_own_list_of_classes_decides_where_it_is_one_against_one(tmp_path: Path) -> None:
    queried = {0: declares(0), 1: declares(1, classes=("x", "y"))}
    grid = InProcessGrid(app_of(queried), 2, {})

    meeting = enroll_clients(grid, 2, run_id=RUN, min_clients=1, classes=("a", "b"), wait_seconds=5.0)

    assert list(meeting.clients) == ["00000"]
    assert meeting.refusals == {"client 00001": "DISAGREES"}


def test_a_client_that_the_run_has_no_place_for_is_left_out(tmp_path: Path) -> None:
    queried = {0: declares(0), 1: declares(1, num_units=10**9)}
    grid = InProcessGrid(app_of(queried), 2, {})

    meeting = enroll_clients(
        grid,
        2,
        run_id=RUN,
        min_clients=1,
        reject=lambda one: "TOO-LARGE" if one.num_units > 99 else "",
        wait_seconds=5.0,
    )

    assert meeting.refusals == {"client 00001": "TOO-LARGE"}


SIZES = {"00000": 10, "00001": 7, "00002": 8}


def test_known_sizes_need_the_first_clients_declaration_alone() -> None:
    asked_in_vain = {number: fails(ClientFailure.INTERNAL) for number in (1, 2)}

    known = meet(asked_in_vain, sizes=SIZES)

    # The same clients, at the same nodes, as if each had declared itself.
    assert known == meet({number: declares(number, num_units=SIZES[f"{number:05d}"]) for number in range(3)})


def test_known_sizes_do_not_hide_a_failure_of_the_first_client() -> None:
    with pytest.raises(FederationError, match="could not declare itself: DATA"):
        meet({0: fails(ClientFailure.DATA)}, sizes=SIZES)


@pytest.mark.parametrize("other", [{"name": "zoe"}, {"num_units": 11}])
def test_known_sizes_are_refused_when_the_first_client_is_another(other: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="but '00000' was expected"):
        meet({0: declares(0, **other)}, sizes=SIZES)
