"""A holder charges each release before it is computed, sends the same bytes for ever, and gives nothing back."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from books_cases import (
    ONE_PLAN,
    OTHERS,
    PARTS,
    books_fixture,  # noqa: F401
    capped,
    everything,
    opened,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_cases import ASKED, PLAN, release, spent_so_far

from common.errors import LedgerError, PolicyError
from common.ledger.hash_chain import check_chain
from common.ledger.registrations import Release, charges_in, is_closed, releases_of
from common.ledger.transactions import Books
from common.privacy.accounting import Spent, spent_by
from common.privacy.events import DpSgdEvent
from common.privacy.policy import ANYTHING

NO_COUNTS = replace(PLAN, counts=None)
OTHER = "f" * 64


def spent(books: Books) -> Spent:
    return spent_so_far(charges_in(books.ledger), delta=PLAN.delta)


def test_reserve_and_commit_in_turn_send_the_same_bytes_for_ever(books: Books) -> None:
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)

    assert books.reserve(agreed, 1, "train", ASKED, ANYTHING) is None
    assert books.reserve(agreed, 1, "train", ASKED, ANYTHING) is None  # nothing had left: computed again
    assert books.commit(agreed, 1, "train", b"reply", keep=2) == b"reply"
    assert books.commit(agreed, 1, "train", b"another", keep=2) == b"reply"  # of two, the first counts
    assert books.reserve(agreed, 1, "train", ASKED, ANYTHING) == b"reply"

    assert releases_of(books.ledger, agreed) == ["train"]
    assert [entry.kind for entry in books.ledger.entries()] == ["genesis", "register", "reserve", "commit"]


@pytest.mark.parametrize("committed", [False, True])
def test_reserve_refuses_the_same_round_with_other_content(books: Books, committed: bool) -> None:
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)
    books.reserve(agreed, 1, "train", ASKED, ANYTHING)
    if committed:
        books.commit(agreed, 1, "train", b"reply", keep=2)
    before = everything(books)

    with pytest.raises(PolicyError, match="another model or other settings"):
        books.reserve(agreed, 1, "train", OTHER, ANYTHING)

    assert everything(books) == before


def test_commit_refuses_what_nobody_reserved(books: Books) -> None:
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)
    books.reserve(agreed, 1, "train", ASKED, ANYTHING)

    for server_round, kind in ((2, "train"), (1, "closing")):
        with pytest.raises(LedgerError, match="nobody had reserved"):
            books.commit(agreed, server_round, kind, b"reply", keep=2)  # type: ignore[arg-type]

    assert books.ledger.head().seq == 3


def test_reserve_refuses_more_rounds_than_the_plan_has(books: Books) -> None:
    release(books, "run", PLAN, PARTS, [(4, "train"), (9, "train"), (2, "train"), (9, "closing")])
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(books)

    for server_round, kind in ((10, "train"), (10, "closing")):
        with pytest.raises(PolicyError, match="does not have"):
            books.reserve(agreed, server_round, kind, ASKED, ANYTHING)  # type: ignore[arg-type]

    assert everything(books) == before
    assert books.reserve(agreed, 2, "train", ASKED, ANYTHING) == b"reply 2 train"


def test_reserve_keeps_the_newest_replies_alone(books: Books) -> None:
    release(books, "run", PLAN, PARTS, [(1, "train"), (2, "train"), (3, "train")])
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)

    assert books.reserve(agreed, 2, "train", ASKED, ANYTHING) == b"reply 2 train"
    with pytest.raises(PolicyError, match="not kept any more"):
        books.reserve(agreed, 1, "train", ASKED, ANYTHING)
    with pytest.raises(PolicyError, match="not kept any more"):
        books.commit(agreed, 1, "train", b"another", keep=2)


def test_close_ends_a_run_for_one_client_alone(books: Books) -> None:
    agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)
    books.reserve(agreed, 1, "train", ASKED, ANYTHING)
    books.commit(agreed, 1, "train", b"reply", keep=9)
    other = books.register("run", "b", PLAN, OTHERS, ANYTHING)

    books.close("run", "a")
    books.close("run", "a")

    assert (is_closed(books.ledger, agreed), is_closed(books.ledger, other)) == (True, False)
    with pytest.raises(PolicyError, match="does not have"):
        books.reserve(agreed, 2, "train", ASKED, ANYTHING)
    with pytest.raises(PolicyError, match="not kept any more"):
        books.reserve(agreed, 1, "train", ASKED, ANYTHING)
    assert books.reserve(other, 1, "train", ASKED, ANYTHING) is None
    assert len(books.ledger.entries("kind = 'note'")) == 1


def test_reserve_obeys_a_policy_that_became_narrower_and_one_that_became_wider(books: Books) -> None:
    agreed = books.register("run", "a", PLAN, PARTS, ONE_PLAN)
    books.reserve(agreed, 1, "train", ASKED, ONE_PLAN)

    for policy in (capped(ONE_PLAN.max_epsilon - 1e-9), ONE_PLAN.model_copy(update={"least_noise_multiplier": 5.0})):
        with pytest.raises(PolicyError):
            books.reserve(agreed, 2, "train", ASKED, policy)

    assert books.reserve(agreed, 2, "train", ASKED, capped(99.0)) is None
    assert books.reserve(agreed, 3, "train", ASKED, ONE_PLAN) is None


def test_refusals_and_notes_are_written_once_for_each_request(books: Books) -> None:
    for _ in range(2):
        books.refuse("run", "a", 1, "train", "why")
        books.refuse("run", "a", 2, "train", "why")
        books.note("run", "a", "what")
        books.note("run", "b", "what")

    assert [entry.kind for entry in books.ledger.entries("seq > 1")] == ["refuse", "refuse", "note", "note"]
    assert charges_in(books.ledger) == []


def test_rounds_a_restart_and_two_runs_compose_as_one_history(tmp_path: Path) -> None:
    books = opened(tmp_path)
    release(books, "first", NO_COUNTS, PARTS, [(1, "train"), (2, "train")])
    books.ledger.close()
    books = opened(tmp_path)  # a restart
    release(books, "first", NO_COUNTS, PARTS, [(1, "train"), (2, "train"), (3, "train")][2:])
    one = spent(books)
    release(books, "second", NO_COUNTS, PARTS, [(1, "train")])
    two = spent(books)
    books.ledger.close()
    books = opened(tmp_path)
    again = spent(books)
    books.ledger.close()

    assert one == spent_by([DpSgdEvent(1.0, 4.0, 3)], delta=1e-5)
    assert two == again == spent_by([DpSgdEvent(1.0, 4.0, 6)], delta=1e-5)
    assert two.pld > one.pld


def test_runs_that_are_only_agreed_to_cost_nothing(books: Books) -> None:
    books.register("run", "a", PLAN, PARTS, ANYTHING)

    assert spent(books) == Spent(0.0, 0.0)


def test_first_reserved_round_costs_the_whole_plan(books: Books) -> None:
    release(books, "run", NO_COUNTS, PARTS, [(1, "train")])

    assert spent(books).pld == NO_COUNTS.spent().pld > NO_COUNTS.spent(1).pld


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
        books = opened(Path(name))
        agreed = books.register("run", "a", PLAN, PARTS, ANYTHING)
        asked: dict[tuple[int, Release], str] = {}
        sent: dict[tuple[int, Release], bytes] = {}
        closed = False
        for number, (what, server_round, kind, content) in enumerate(steps):
            key = (server_round, kind)
            planned = 3 if kind == "train" else 1
            if what == "restart":
                books.ledger.close()
                books = opened(Path(name))
            elif what == "close":
                books.close("run", "a")
                closed = True
            elif what == "commit" and key not in asked:
                with pytest.raises(LedgerError):
                    books.commit(agreed, *key, b"", keep=99)
            elif what == "commit" and key in sent and closed:
                with pytest.raises(PolicyError):
                    books.commit(agreed, *key, b"", keep=99)
            elif what == "commit":
                sent.setdefault(key, f"reply {number}".encode())
                assert books.commit(agreed, *key, f"reply {number}".encode(), keep=99) == sent[key]
                if closed:
                    books.close("run", "a")
            elif key in asked and asked[key] == content and not (key in sent and closed):
                assert books.reserve(agreed, *key, content, ANYTHING) == sent.get(key)
            elif key in asked or closed or sum(one == kind for _, one in asked) >= planned:
                with pytest.raises(PolicyError):
                    books.reserve(agreed, *key, content, ANYTHING)
            else:
                assert books.reserve(agreed, *key, content, ANYTHING) is None
                asked[key] = content
        assert sorted(releases_of(books.ledger, agreed)) == sorted(kind for _, kind in asked)
        assert len(books.ledger.entries("kind = 'commit'")) == len(sent)
        check_chain(books.ledger.entries())
        books.ledger.close()
