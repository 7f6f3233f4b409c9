"""A holder agrees to a whole plan once, within its policy and what its images have left, and never to another.

Drives `common.ledger.registrations`.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import LedgerError, PolicyError
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.registrations import Registration, charges_in
from common.ledger.transactions import LedgerSession
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, Policy
from tests.support.ledger.builders import ASKED, KEYS, PLAN, WHOLE, ImageDigests, holding, release
from tests.support.ledger.sessions import ONE_PLAN, OTHERS, PARTS, capped, everything, opened


def test_books_begin_with_the_holders_identity(session: LedgerSession) -> None:
    (genesis,) = session.ledger.entries()

    assert (genesis.kind, genesis.event["ledger"], genesis.event["simulated"]) == ("genesis", KEYS.ledger_id, True)


@pytest.mark.parametrize(("name", "simulated"), [("b", True), ("a", False)])
def test_books_refuse_another_holders_ledger_and_a_simulations(
    session: LedgerSession, tmp_path: Path, name: str, simulated: bool
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)

    with pytest.raises(LedgerError, match="made with other keys"):
        LedgerSession(ledger, HolderKeys.simulated(0, name), simulated=simulated)

    assert ledger.head().seq == 1
    ledger.close()


def test_register_writes_once_and_finds_what_was_agreed(session: LedgerSession) -> None:
    first = session.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(session)

    again = session.register("run", "a", PLAN, PARTS, ANYTHING)

    assert again == first == session.registration("run", "a")
    assert (first.plan, first.policy) == (PLAN, ANYTHING.digest)
    assert everything(session) == before
    assert session.registration("run", "b") is session.registration("other", "a") is None


def test_register_again_is_what_it_was_when_a_policy_would_now_refuse_it(session: LedgerSession) -> None:
    first = session.register("run", "a", PLAN, PARTS, ANYTHING)

    assert session.register("run", "a", PLAN, PARTS, capped(0.01)) == first


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
    session: LedgerSession, plan: PrivacyPlan, parts: tuple[ImageDigests, ImageDigests], what: str
) -> None:
    session.register("run", "a", PLAN, PARTS, ANYTHING)
    before = everything(session)

    with pytest.raises(PolicyError, match=what):
        session.register("run", "a", plan, parts, ANYTHING)

    assert everything(session) == before


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_register_takes_a_plan_at_the_cap_and_refuses_one_over_it(session: LedgerSession, accountant: str) -> None:
    cost = getattr(PLAN.spent(), accountant)
    before = everything(session)

    with pytest.raises(PolicyError, match=r"would come to .* policy allows"):
        session.register("run", "a", PLAN, PARTS, capped(cost - 1e-9, accountant))
    assert everything(session) == before

    assert session.register("run", "a", PLAN, PARTS, capped(cost, accountant)).run == "run"


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (ONE_PLAN.model_copy(update={"min_noise_multiplier": 4.5}), "noise multiplier"),
        (ONE_PLAN.model_copy(update={"delta": 1e-6}), "delta"),
    ],
)
def test_register_refuses_a_plan_beyond_the_policy(session: LedgerSession, policy: Policy, why: str) -> None:
    before = everything(session)

    with pytest.raises(PolicyError, match=why):
        session.register("run", "a", PLAN, PARTS, policy)

    assert everything(session) == before


def test_register_refuses_noise_that_means_nothing_whatever_the_policy(session: LedgerSession) -> None:
    with pytest.raises(PolicyError, match="promises nothing"):
        session.register("run", "a", replace(PLAN, noise_multiplier=0.01), PARTS, ANYTHING)


def test_register_wants_the_group_bound_said(session: LedgerSession) -> None:
    release(session, "first", PLAN, PARTS, [(1, "train")])
    grouped, parts = replace(PLAN, privacy_unit="group"), (holding(0, 6, 3), holding(6, 8))
    wide = capped(100.0)

    with pytest.raises(PolicyError, match="accept-group-bound = true"):
        session.register("second", "a", grouped, parts, wide)

    allowed = wide.model_copy(update={"accept_group_bound": True})
    assert session.register("second", "a", grouped, parts, allowed).plan == grouped


def whole(*parts: ImageDigests) -> tuple[ImageDigests, ...]:
    return tuple(part.as_one_unit() for part in parts)


def test_a_whole_client_with_other_images_is_the_same_client(session: LedgerSession) -> None:
    once = ANYTHING.model_copy(update={"max_epsilon": WHOLE.spent().pld, "delta": WHOLE.delta})
    agreed = session.register("first", "a", WHOLE, whole(*PARTS), once)
    assert session.reserve(agreed, 1, "train", ASKED, once) is None

    for parts in (OTHERS, (holding(20, 20), holding(20, 20)), (PARTS[1], PARTS[0])):
        with pytest.raises(PolicyError, match="would come to"):
            session.register("second", "a", WHOLE, whole(*parts), once)

    assert session.register("third", "a", replace(WHOLE, privacy_unit="group"), OTHERS, once).run == "third"


@pytest.mark.parametrize("parts", [PARTS, (*whole(PARTS[0]), PARTS[1]), (PARTS[0], *whole(PARTS[1]))])
def test_register_refuses_a_whole_client_of_several_units(
    session: LedgerSession, parts: tuple[ImageDigests, ...]
) -> None:
    before = everything(session)

    with pytest.raises(PolicyError, match="do not form one unit"):
        session.register("run", "a", WHOLE, parts, ANYTHING)

    assert everything(session) == before


def test_register_counts_what_was_begun_and_not_what_was_only_agreed(session: LedgerSession) -> None:
    first = session.register("first", "a", PLAN, PARTS, ONE_PLAN)
    second = session.register("second", "a", PLAN, PARTS, ONE_PLAN)  # the first has not begun
    assert session.reserve(first, 1, "train", ASKED, ONE_PLAN) is None
    before = everything(session)

    with pytest.raises(PolicyError, match="would come to"):
        session.reserve(second, 1, "train", ASKED, ONE_PLAN)
    with pytest.raises(PolicyError, match="would come to"):
        session.register("third", "a", PLAN, PARTS, ONE_PLAN)

    assert everything(session) == before
    assert session.reserve(first, 2, "train", ASKED, ONE_PLAN) is None


def test_budget_is_not_refunded_when_a_run_is_closed_early(session: LedgerSession) -> None:
    release(session, "first", PLAN, PARTS, [(1, "train")])
    session.close("first", "a")

    with pytest.raises(PolicyError, match="would come to"):
        session.register("second", "a", PLAN, PARTS, ONE_PLAN)


class _Meanwhile(Policy):
    """A policy that lets another process be faster, after the run was found to be new."""

    def check_plan(self, plan: PrivacyPlan) -> None:
        hurry = _waiting.pop() if _waiting else None
        if hurry is not None:
            session, other_plan, parts = hurry
            session.register("run", "a", other_plan, parts, ANYTHING)


_waiting: list[tuple[LedgerSession, PrivacyPlan, tuple[ImageDigests, ImageDigests]]] = []
_SLOW = _Meanwhile.model_validate(ANYTHING.model_dump())


def test_register_finds_what_another_process_agreed_to_meanwhile(session: LedgerSession, tmp_path: Path) -> None:
    other = opened(tmp_path)
    _waiting.append((other, PLAN, PARTS))

    agreed = session.register("run", "a", PLAN, PARTS, _SLOW)

    assert agreed == other.registration("run", "a")
    assert session.ledger.head().seq == 2
    other.ledger.close()


@pytest.mark.parametrize(
    ("plan", "parts"), [(replace(PLAN, noise_multiplier=9.0), PARTS), (PLAN, OTHERS)], ids=["plan", "images"]
)
def test_register_refuses_another_version_of_what_was_agreed_to_meanwhile(
    session: LedgerSession, tmp_path: Path, plan: PrivacyPlan, parts: tuple[ImageDigests, ImageDigests]
) -> None:
    other = opened(tmp_path)
    _waiting.append((other, plan, parts))

    with pytest.raises(PolicyError, match="was agreed to with another"):
        session.register("run", "a", PLAN, PARTS, _SLOW)

    other.reserve(Registration.of(session.ledger.entries("kind = 'register'")[0]), 1, "train", ASKED, ANYTHING)
    assert len(charges_in(session.ledger)) == 1  # and the ledger can still be read
    other.ledger.close()
