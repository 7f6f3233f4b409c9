"""What is shown of a budget is never below what the guard would start a further plan from."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from common.config.sections import Unit
from common.ledger import remaining_budget
from common.ledger.budget import Charge, spent_with
from common.ledger.image_index import Members
from common.ledger.remaining_budget import Budget, budget_of
from common.privacy.events import DpSgdEvent
from common.privacy.policy import Policy

_ALMOST_NOTHING = 1e4


def members(images: Sequence[int], units: Sequence[int] | None = None) -> Members:
    numbered = range(len(images)) if units is None else units
    return Members(np.array(images, dtype=np.int64), np.array(numbered, dtype=np.int64))


def charge(unit: Unit, of: Members, noise: float, *, whole: bool = False) -> Charge:
    events = {"training": [DpSgdEvent(noise_multiplier=noise, sample_rate=1.0, steps=1)]}
    return Charge(unit, {"training": of}, events, events, True, whole)


def by_images(images: Sequence[int], noise: float = 2.0) -> Charge:
    return charge("image", members(images), noise)


def by_groups(units: Sequence[int], noise: float = 2.0) -> Charge:
    return charge("group", members(range(1, len(units) + 1), units), noise)


def of_client(images: Sequence[int], noise: float = 2.0) -> Charge:
    return charge("group", members(images, [0] * len(images)), noise, whole=True)


FIVE, ONE_TO_FOUR, PAIRS = (1, 2, 3, 4, 5), (1, 2, 3, 4), (0, 0, 1, 1)
NEXT_IMAGES = by_images(ONE_TO_FOUR, _ALMOST_NOTHING)
NEXT_PAIRS = by_groups(PAIRS, _ALMOST_NOTHING)
NEXT_CLIENT = of_client(FIVE, _ALMOST_NOTHING)


def budget(monkeypatch: pytest.MonkeyPatch, past: list[Charge], policy: Policy) -> Budget:
    monkeypatch.setattr(remaining_budget, "open_read_only", nullcontext)
    monkeypatch.setattr(remaining_budget, "charges_in", lambda _: past)
    return budget_of(Path("ledger"), policy)


def allowing(units: tuple[Unit, ...] = ("image", "group")) -> Policy:
    """A policy for whole clients, and for other units if any are named."""
    mechanisms = ("client-dp", "dp-sgd") if units else ("client-dp",)
    return Policy.model_validate({"max-epsilon": 100.0, "delta": 1e-5, "mechanisms": mechanisms, "units": units})


@pytest.mark.parametrize(
    ("past", "following"),
    [
        ([of_client([]), of_client(FIVE)], [NEXT_CLIENT, NEXT_IMAGES]),
        ([of_client([]), of_client([])], [NEXT_CLIENT]),
        ([of_client([1, 2]), of_client([1])], [of_client([1], _ALMOST_NOTHING), of_client([1, 2], _ALMOST_NOTHING)]),
        ([by_groups(PAIRS)], [NEXT_PAIRS, NEXT_IMAGES]),
        ([by_groups(PAIRS), by_groups((0, 1, 1, 0))], [NEXT_PAIRS, NEXT_IMAGES]),
        ([by_groups(PAIRS), by_images([50], 100.0)], [NEXT_PAIRS, NEXT_IMAGES]),
        ([of_client(FIVE), by_groups(PAIRS)], [NEXT_CLIENT, NEXT_PAIRS, NEXT_IMAGES]),
        ([by_images(FIVE), of_client(FIVE, 50.0)], [NEXT_CLIENT, NEXT_IMAGES]),
        ([by_images(FIVE), by_groups(PAIRS)], [NEXT_PAIRS, NEXT_IMAGES]),
    ],
)
@pytest.mark.parametrize("units", [("image", "group"), ("group",), ("image",), ()])
def test_no_plan_that_the_policy_allows_starts_from_more_than_is_shown(
    monkeypatch: pytest.MonkeyPatch, past: list[Charge], following: list[Charge], units: tuple[Unit, ...]
) -> None:
    shown = budget(monkeypatch, past, allowing(units))

    for plan in following:
        if plan.whole_client or plan.unit in units:
            start = spent_with(plan, past, delta=1e-5).spent.pld
            assert start <= shown.spent + 0.01, "the plan itself costs almost nothing"
    assert shown.by_unit


@pytest.mark.parametrize(
    ("past", "units", "leads", "spent"),
    [
        # The client alone may be protected again, so the figure of its images is nobody's.
        ([of_client(FIVE)], (), "group", 1.993),
        ([of_client(FIVE)], ("group",), None, 4.377),
        ([by_groups(PAIRS)], ("group",), "group", 1.993),
        ([by_groups(PAIRS)], ("image",), None, 4.377),
        ([by_images(FIVE)], ("image",), "image", 1.993),
    ],
)
def test_the_figure_is_that_of_a_unit_that_the_policy_allows(
    monkeypatch: pytest.MonkeyPatch, past: list[Charge], units: tuple[Unit, ...], leads: Unit | None, spent: float
) -> None:
    shown = budget(monkeypatch, past, allowing(units))

    assert shown.spent == pytest.approx(spent, abs=2e-3)
    assert (None if shown.leading is None else shown.leading.unit) == leads
    assert ("by single images would start" in shown.whose) == (leads is None)
    assert [row.spent for row in shown.by_unit] == [pytest.approx(1.993, abs=2e-3)]


def test_nothing_is_spent_in_an_empty_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = budget(monkeypatch, [], allowing())

    assert (shown.spent, shown.left, shown.by_unit) == (0.0, 100.0, ())
