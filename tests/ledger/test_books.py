"""A holder agrees to a whole plan, charges each release before it is computed, and never gives anything back."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_cases import ASKED, KEYS, PLAN, Holding, holding, release, spent_so_far

from common.errors import LedgerError, PolicyError
from common.ledger.agreements import Registration, Release, charges_in, is_closed, releases_of
from common.ledger.books import Books
from common.ledger.chain import check_chain
from common.ledger.keys import HolderKeys
from common.ledger.ledger import Ledger
from common.privacy.accounting import Spent, spent_by
from common.privacy.events import DpSgdEvent
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, Policy

PARTS = (holding(0, 6), holding(6, 8))
OTHERS = (holding(10, 16), holding(16, 18))
NO_COUNTS = replace(PLAN, counts=None)
ONE_PLAN = Policy(max_epsilon=PLAN.spent().pld, delta=PLAN.delta)
OTHER = "f" * 64


def opened(folder: Path) -> Books:
    return Books(Ledger(folder / "ledger.sqlite", durable=False), KEYS, simulated=True)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    found = opened(tmp_path)
    yield found
    found.ledger.close()


def everything(books: Books) -> list[str]:
    return list(books.ledger._connection.iterdump())


def capped(epsilon: float, accountant: str = "pld") -> Policy:
    return Policy.model_validate({"max-epsilon": epsilon, "delta": PLAN.delta, "accountant": accountant})


def spent(books: Books) -> Spent:
    return spent_so_far(charges_in(books.ledger), delta=PLAN.delta)


def test_books_begin_with_the_holders_identity(books: Books) -> None:
    (genesis,) = books.ledger.entries()

    assert (genesis.kind, genesis.event["ledger"], genesis.event["simulated"]) == ("genesis", KEYS.ledger_id, True)


@pytest.mark.parametrize(("name", "simulated"), [("b", True), ("a", False)])
def test_books_refuse_another_holders_ledger_and_a_simulations(
    books: Books, tmp_path: Path, name: str, simulated: bool
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)

    with pytest.raises(LedgerError, match="made with other keys"):
        Books(ledger, HolderKeys.simulated(0, name), simulated=simulated)

    assert ledger.head().seq == 1
    ledger.close()


def test_register_writes_once_and_finds_what_was_agreed(books: Books) -> None:
    first = books.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(books)

    again = books.register("run", "a", PLAN, PARTS, ANYTHING)

    assert again == first == books.registration("run", "a")
    assert (first.plan, first.policy) == (PLAN, ANYTHING.digest)
    assert everything(books) == before
    assert books.registration("run", "b") is books.registration("other", "a") is None


def test_register_again_is_what_it_was_when_a_policy_would_now_refuse_it(books: Books) -> None:
    first = books.register("run", "a", PLAN, PARTS, ANYTHING)

    assert books.register("run", "a", PLAN, PARTS, capped(0.01)) == first


@pytest.mark.parametrize(
    ("plan", "parts", "what"),
    [
        (replace(PLAN, noise_multiplier=5.0), PARTS, "another plan"),
        (replace(PLAN, num_rounds=2), PARTS, "another plan"),
        (PLAN, OTHERS, "another images"),
        (PLAN, (holding(0, 5), holding(6, 8)), "images"),
        (PLAN, PARTS[::-1], "images"),
    ],
)
def test_register_refuses_a_run_that_changes(
    books: Books, plan: PrivacyPlan, parts: tuple[Holding, Holding], what: str
) -> None:
    books.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(books)

    with pytest.raises(PolicyError, match=what):
        books.register("run", "a", plan, parts, ANYTHING)

    assert everything(books) == before


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_register_takes_a_plan_at_the_cap_and_refuses_one_over_it(books: Books, accountant: str) -> None:
    cost = getattr(PLAN.spent(), accountant)
    before = everything(books)

    with pytest.raises(PolicyError, match=r"would come to .* policy allows"):
        books.register("run", "a", PLAN, PARTS, capped(cost - 1e-9, accountant))
    assert everything(books) == before

    assert books.register("run", "a", PLAN, PARTS, capped(cost, accountant)).run == "run"


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (ONE_PLAN.model_copy(update={"least_noise_multiplier": 4.5}), "noise multiplier"),
        (ONE_PLAN.model_copy(update={"delta": 1e-6}), "delta"),
    ],
)
def test_register_refuses_a_plan_beyond_the_policy(books: Books, policy: Policy, why: str) -> None:
    before = everything(books)

    with pytest.raises(PolicyError, match=why):
        books.register("run", "a", PLAN, PARTS, policy)

    assert everything(books) == before


def test_register_refuses_noise_that_means_nothing_whatever_the_policy(books: Books) -> None:
    with pytest.raises(PolicyError, match="promises nothing"):
        books.register("run", "a", replace(PLAN, noise_multiplier=0.01), PARTS, ANYTHING)


def test_register_wants_the_group_bound_said(books: Books) -> None:
    release(books, "first", PLAN, PARTS, [(1, "train")])
    grouped, parts = replace(PLAN, privacy_unit="group"), (holding(0, 6, 3), holding(6, 8))
    wide = capped(100.0)

    with pytest.raises(PolicyError, match="accept-group-bound = true"):
        books.register("second", "a", grouped, parts, wide)

    allowed = wide.model_copy(update={"accept_group_bound": True})
    assert books.register("second", "a", grouped, parts, allowed).plan == grouped


def test_register_counts_what_was_begun_and_not_what_was_only_agreed(books: Books) -> None:
    first = books.register("first", "a", PLAN, PARTS, ONE_PLAN)
    second = books.register("second", "a", PLAN, PARTS, ONE_PLAN)  # the first has not begun
    assert books.reserve(first, 1, "train", ASKED, ONE_PLAN) is None
    before = everything(books)

    with pytest.raises(PolicyError, match="would come to"):
        books.reserve(second, 1, "train", ASKED, ONE_PLAN)
    with pytest.raises(PolicyError, match="would come to"):
        books.register("third", "a", PLAN, PARTS, ONE_PLAN)

    assert everything(books) == before
    assert books.reserve(first, 2, "train", ASKED, ONE_PLAN) is None


def test_budget_is_not_refunded_when_a_run_is_closed_early(books: Books) -> None:
    release(books, "first", PLAN, PARTS, [(1, "train")])
    books.close("first", "a")

    with pytest.raises(PolicyError, match="would come to"):
        books.register("second", "a", PLAN, PARTS, ONE_PLAN)


class _Meanwhile(Policy):
    """A policy that lets another process be faster, after the run was found to be new."""

    def check_plan(self, plan: PrivacyPlan) -> None:
        hurry = _waiting.pop() if _waiting else None
        if hurry is not None:
            books, other_plan, parts = hurry
            books.register("run", "a", other_plan, parts, ANYTHING)


_waiting: list[tuple[Books, PrivacyPlan, tuple[Holding, Holding]]] = []
_SLOW = _Meanwhile.model_validate(ANYTHING.model_dump(by_alias=True))


def test_register_finds_what_another_process_agreed_to_meanwhile(books: Books, tmp_path: Path) -> None:
    other = opened(tmp_path)
    _waiting.append((other, PLAN, PARTS))

    agreed = books.register("run", "a", PLAN, PARTS, _SLOW)

    assert agreed == other.registration("run", "a")
    assert books.ledger.head().seq == 2
    other.ledger.close()


@pytest.mark.parametrize(
    ("plan", "parts"), [(replace(PLAN, noise_multiplier=9.0), PARTS), (PLAN, OTHERS)], ids=["plan", "images"]
)
def test_register_refuses_another_version_of_what_was_agreed_to_meanwhile(
    books: Books, tmp_path: Path, plan: PrivacyPlan, parts: tuple[Holding, Holding]
) -> None:
    other = opened(tmp_path)
    _waiting.append((other, plan, parts))

    with pytest.raises(PolicyError, match="was agreed to with another"):
        books.register("run", "a", PLAN, PARTS, _SLOW)

    other.reserve(Registration.of(books.ledger.entries("kind = 'register'")[0]), 1, "train", ASKED, ANYTHING)
    assert len(charges_in(books.ledger)) == 1  # and the ledger can still be read
    other.ledger.close()


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
