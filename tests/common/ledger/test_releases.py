"""A holder charges each release before it is computed, sends the same bytes for ever, and gives nothing back."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import LedgerError, PolicyError
from common.ledger.hash_chain import check_chain
from common.ledger.registrations import Release, charges_in, is_closed, releases_of
from common.ledger.transactions import LedgerSession
from common.privacy.accounting import Spent, spent_by
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import DpSgdEvent, merged
from common.privacy.policy import ANYTHING
from tests.support.ledger.builders import ASKED, PLAN, release, spent_so_far
from tests.support.ledger.sessions import ONE_PLAN, OTHERS, PARTS, capped, everything, opened

NO_COUNTS = replace(PLAN, counts=None)
OTHER = "f" * 64


def spent(session: LedgerSession) -> Spent:
    return spent_so_far(charges_in(session.ledger), delta=PLAN.delta)


def test_reserve_and_commit_in_turn_send_the_same_bytes_for_ever(session: LedgerSession) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)

    assert session.reserve(agreed, 1, "train", ASKED, ANYTHING) is None
    assert session.reserve(agreed, 1, "train", ASKED, ANYTHING) is None  # nothing had left: computed again
    assert session.commit(agreed, 1, "train", b"reply", keep=2) == b"reply"
    assert session.commit(agreed, 1, "train", b"another", keep=2) == b"reply"  # of two, the first counts
    assert session.reserve(agreed, 1, "train", ASKED, ANYTHING) == b"reply"

    assert releases_of(session.ledger, agreed) == [("train", 1)]
    assert [entry.kind for entry in session.ledger.entries()] == ["genesis", "register", "reserve", "commit"]


@pytest.mark.parametrize("committed", [False, True])
def test_reserve_refuses_the_same_round_with_other_content(session: LedgerSession, committed: bool) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    session.reserve(agreed, 1, "train", ASKED, ANYTHING)
    if committed:
        session.commit(agreed, 1, "train", b"reply", keep=2)
    before = everything(session)

    with pytest.raises(PolicyError, match="another model or other settings"):
        session.reserve(agreed, 1, "train", OTHER, ANYTHING)

    assert everything(session) == before


def test_commit_refuses_what_nobody_reserved(session: LedgerSession) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    session.reserve(agreed, 1, "train", ASKED, ANYTHING)

    for server_round, kind in ((2, "train"), (1, "closing")):
        with pytest.raises(LedgerError, match="was not reserved"):
            session.commit(agreed, server_round, kind, b"reply", keep=2)  # type: ignore[arg-type]

    assert session.ledger.head().seq == 3


def test_reserve_refuses_more_rounds_than_the_plan_has(session: LedgerSession) -> None:
    release(session, "run", PLAN, PARTS, [(4, "train"), (9, "train"), (2, "train"), (9, "closing")])
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(session)

    for server_round, kind in ((10, "train"), (10, "closing")):
        with pytest.raises(PolicyError, match="does not have"):
            session.reserve(agreed, server_round, kind, ASKED, ANYTHING)  # type: ignore[arg-type]

    assert everything(session) == before
    assert session.reserve(agreed, 2, "train", ASKED, ANYTHING) == b"reply 2 train"


def test_reserve_keeps_the_newest_replies_alone(session: LedgerSession) -> None:
    release(session, "run", PLAN, PARTS, [(1, "train"), (2, "train"), (3, "train")])
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)

    assert session.reserve(agreed, 2, "train", ASKED, ANYTHING) == b"reply 2 train"
    with pytest.raises(PolicyError, match="not kept any more"):
        session.reserve(agreed, 1, "train", ASKED, ANYTHING)
    with pytest.raises(PolicyError, match="not kept any more"):
        session.commit(agreed, 1, "train", b"another", keep=2)


def test_close_ends_a_run_for_one_client_alone(session: LedgerSession) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    session.reserve(agreed, 1, "train", ASKED, ANYTHING)
    session.commit(agreed, 1, "train", b"reply", keep=9)
    other = session.register("run", "b", PLAN, OTHERS, ANYTHING)

    session.close("run", "a")
    session.close("run", "a")

    assert (is_closed(session.ledger, agreed), is_closed(session.ledger, other)) == (True, False)
    with pytest.raises(PolicyError, match="does not have"):
        session.reserve(agreed, 2, "train", ASKED, ANYTHING)
    with pytest.raises(PolicyError, match="not kept any more"):
        session.reserve(agreed, 1, "train", ASKED, ANYTHING)
    assert session.reserve(other, 1, "train", ASKED, ANYTHING) is None
    assert len(session.ledger.entries("kind = 'note'")) == 1


def test_reserve_obeys_a_policy_that_became_narrower_and_one_that_became_wider(session: LedgerSession) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ONE_PLAN)
    session.reserve(agreed, 1, "train", ASKED, ONE_PLAN)

    for policy in (capped(ONE_PLAN.max_epsilon - 1e-9), ONE_PLAN.model_copy(update={"min_noise_multiplier": 5.0})):
        with pytest.raises(PolicyError):
            session.reserve(agreed, 2, "train", ASKED, policy)

    assert session.reserve(agreed, 2, "train", ASKED, capped(99.0)) is None
    assert session.reserve(agreed, 3, "train", ASKED, ONE_PLAN) is None


def test_refusals_and_notes_are_written_once_for_each_request(session: LedgerSession) -> None:
    for _ in range(2):
        session.refuse("run", "a", 1, "train", "why")
        session.refuse("run", "a", 2, "train", "why")
        session.note("run", "a", "what")
        session.note("run", "b", "what")

    assert [entry.kind for entry in session.ledger.entries("seq > 1")] == ["refuse", "refuse", "note", "note"]
    assert charges_in(session.ledger) == []


def test_rounds_a_restart_and_two_runs_compose_as_one_history(tmp_path: Path) -> None:
    session = opened(tmp_path)
    release(session, "first", NO_COUNTS, PARTS, [(1, "train"), (2, "train")])
    session.ledger.close()
    session = opened(tmp_path)  # a restart
    release(session, "first", NO_COUNTS, PARTS, [(1, "train"), (2, "train"), (3, "train")][2:])
    one = spent(session)
    release(session, "second", NO_COUNTS, PARTS, [(1, "train")])
    two = spent(session)
    session.ledger.close()
    session = opened(tmp_path)
    again = spent(session)
    session.ledger.close()

    assert one == spent_by([DpSgdEvent(1.0, 4.0, 3)], delta=1e-5)
    assert two == again == spent_by([DpSgdEvent(1.0, 4.0, 6)], delta=1e-5)
    assert two.pld > one.pld


def test_runs_that_are_only_agreed_to_cost_nothing(session: LedgerSession) -> None:
    session.register("run", "a", PLAN, PARTS, ANYTHING)

    assert spent(session) == Spent(0.0, 0.0)


def test_first_reserved_round_costs_the_whole_plan(session: LedgerSession) -> None:
    release(session, "run", NO_COUNTS, PARTS, [(1, "train")])

    assert spent(session).pld == NO_COUNTS.spent().pld > NO_COUNTS.spent(1).pld


STEP = st.tuples(
    st.sampled_from(["reserve", "commit", "close", "restart"]),
    st.integers(1, 5),
    st.sampled_from(["train", "closing"]),
    st.sampled_from([ASKED, OTHER]),
)


@given(st.lists(STEP, max_size=16))
@settings(max_examples=40, deadline=None)
def test_releases_follow_a_simple_model_whatever_is_asked(steps: list[tuple[str, int, Release, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        session = opened(Path(name))
        agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
        asked: dict[tuple[int, Release], str] = {}
        sent: dict[tuple[int, Release], bytes] = {}
        closed = False
        for number, (what, server_round, kind, content) in enumerate(steps):
            key = (server_round, kind)
            planned = 3 if kind == "train" else 1
            if what == "restart":
                session.ledger.close()
                session = opened(Path(name))
            elif what == "close":
                session.close("run", "a")
                closed = True
            elif what == "commit" and key not in asked:
                with pytest.raises(LedgerError):
                    session.commit(agreed, *key, b"", keep=99)
            elif what == "commit" and key in sent and closed:
                with pytest.raises(PolicyError):
                    session.commit(agreed, *key, b"", keep=99)
            elif what == "commit":
                sent.setdefault(key, f"reply {number}".encode())
                assert session.commit(agreed, *key, f"reply {number}".encode(), keep=99) == sent[key]
                if closed:
                    session.close("run", "a")
            elif key in asked and asked[key] == content and not (key in sent and closed):
                assert session.reserve(agreed, *key, content, ANYTHING) == sent.get(key)
            elif key in asked or closed or sum(one == kind for _, one in asked) >= planned:
                with pytest.raises(PolicyError):
                    session.reserve(agreed, *key, content, ANYTHING)
            else:
                assert session.reserve(agreed, *key, content, ANYTHING) is None
                asked[key] = content
        assert sorted(releases_of(session.ledger, agreed)) == sorted((kind, number) for number, kind in asked)
        assert len(session.ledger.entries("kind = 'commit'")) == len(sent)
        check_chain(session.ledger.entries())
        session.ledger.close()


SELDOM = replace(PLAN, num_rounds=4, counts=CountsPlan(1, 25.0, 4.0, every=3))


def test_a_round_that_is_not_counted_charges_no_counts(session: LedgerSession) -> None:
    release(session, "run", SELDOM, PARTS, [(2, "train"), (3, "train"), (4, "closing")])

    charged = [entry.event["charges"]["evaluation"] for entry in session.ledger.entries("kind = 'reserve'")]
    assert [[event["noise-stddev"] for event in events] for events in charged] == [[], [25.0], [4.0]]
    (charge,) = charges_in(session.ledger)
    assert merged(charge.released["evaluation"]) == merged(SELDOM.counts_events(1))
    assert charge.released["training"] == (SELDOM.event(2),)


def test_reserve_refuses_a_server_that_chooses_counted_rounds_alone(session: LedgerSession) -> None:
    agreed = session.register("run", "a", SELDOM, PARTS, ANYTHING)
    session.reserve(agreed, 3, "train", ASKED, ANYTHING)

    with pytest.raises(PolicyError, match="counts in more rounds"):
        session.reserve(agreed, 6, "train", ASKED, ANYTHING)
    assert session.reserve(agreed, 7, "train", ASKED, ANYTHING) is None
    assert releases_of(session.ledger, agreed) == [("train", 3), ("train", 7)]


LABELLED = replace(PLAN, label_noise_stddev=8.0)


def test_label_counts_are_charged_once_and_kept_beside_the_newest_replies(session: LedgerSession) -> None:
    agreed = session.register("run", "a", LABELLED, PARTS, ANYTHING)
    assert session.reserve(agreed, 0, "labels", ASKED, ANYTHING) is None
    assert session.reserve(agreed, 0, "labels", ASKED, ANYTHING) is None  # died before the commit: drawn again
    assert session.commit(agreed, 0, "labels", b"[3, 5]", keep=1) == b"[3, 5]"
    assert session.commit(agreed, 0, "labels", b"[9, 9]", keep=1) == b"[3, 5]"  # of two processes, the first counts
    release(session, "run", LABELLED, PARTS, [(1, "train"), (2, "train"), (3, "train")])

    assert session.reserve(agreed, 0, "labels", ASKED, ANYTHING) == b"[3, 5]"
    with pytest.raises(PolicyError, match="not kept any more"):
        session.reserve(agreed, 1, "train", ASKED, ANYTHING)
    with pytest.raises(PolicyError, match="does not have"):
        session.reserve(agreed, 1, "labels", ASKED, ANYTHING)

    (charge,) = charges_in(session.ledger)
    assert merged(charge.released["training"]) == merged(LABELLED.training_events(3))
    assert merged(charge.planned["training"]) == merged(LABELLED.training_events())
    session.close("run", "a")
    with pytest.raises(PolicyError, match="not kept any more"):
        session.reserve(agreed, 0, "labels", ASKED, ANYTHING)


def test_label_counts_alone_begin_a_plan(session: LedgerSession) -> None:
    agreed = session.register("run", "a", LABELLED, PARTS, ANYTHING)
    session.reserve(agreed, 0, "labels", ASKED, ANYTHING)

    assert spent(session).pld == pytest.approx(LABELLED.spent().pld)
    assert spent(session).pld > PLAN.spent().pld


def test_a_plan_without_label_counts_refuses_them(session: LedgerSession) -> None:
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(session)

    with pytest.raises(PolicyError, match="does not have"):
        session.reserve(agreed, 0, "labels", ASKED, ANYTHING)

    assert everything(session) == before
