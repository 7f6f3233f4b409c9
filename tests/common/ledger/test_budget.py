"""What the worst-off unit has spent, worked out by hand from the runs its images took part in."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.sections import Unit
from common.errors import ConfigError
from common.ledger.audit.costs import worst_image
from common.ledger.budget import Charge, spent_with
from common.ledger.image_index import Members
from common.privacy.accounting import NOTHING, Spent, spent_by
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.noise_error import CURRENT_SAMPLER, MAX_DRAWS
from tests.support.ledger.builders import spent_so_far

DELTA = 1e-5
TRAINED, HELD_OUT = DpSgdEvent(1.0, 9.0, 4), CountsEvent(30.0, 3)


def members(images: list[int], units: list[int] | None = None) -> Members:
    return Members(np.array(images, dtype=np.int64), np.array(images if units is None else units, dtype=np.int64))


def charge(
    training: Members,
    evaluation: Members | None = None,
    *,
    unit: Unit = "image",
    trained: DpSgdEvent = TRAINED,
    rounds_left: int = 0,
    closed: bool = False,
) -> Charge:
    released = replace(trained, steps=trained.steps - rounds_left)
    return Charge(
        unit,
        {"training": training, "evaluation": evaluation or members([])},
        {"training": [trained], "evaluation": [HELD_OUT]},
        {"training": [released], "evaluation": [HELD_OUT]},
        closed,
    )


def spent(*events: Event) -> Spent:
    return spent_by(events, delta=DELTA)


def grown(event: DpSgdEvent, size: int) -> DpSgdEvent:
    return replace(event, group_size=size)


def test_spent_with_nothing_before_is_the_plan() -> None:
    worst = spent_with(charge(members([1, 2])), [], delta=DELTA)

    assert (worst.spent, worst.group_bound) == (spent(TRAINED), False)


def test_a_plan_over_no_images_is_priced_too() -> None:
    """Otherwise a refusal by the cap would tell that there are images."""
    nothing = spent_with(charge(members([])), [charge(members([1]))], delta=DELTA).spent

    assert nothing == spent_with(charge(members([2])), [charge(members([1]))], delta=DELTA).spent != NOTHING
    assert spent_so_far([], delta=DELTA) == NOTHING


def test_spent_with_takes_the_worse_of_both_parts() -> None:
    new = charge(members([1]), members([2]), trained=DpSgdEvent(1.0, 90.0, 1))

    assert spent_with(new, [], delta=DELTA).spent == spent(HELD_OUT)


def test_histories_of_runs_over_the_same_images_are_one_history() -> None:
    other = DpSgdEvent(0.5, 3.0, 7)
    past = [charge(members([1, 2, 3])), charge(members([3, 4]), members([1]), trained=other)]

    found = {image: spent_with(charge(members([image])), past, delta=DELTA).spent for image in range(1, 6)}

    assert found[1] == spent(TRAINED, TRAINED, HELD_OUT)
    assert found[2] == spent(replace(TRAINED, steps=8))
    assert found[3] == spent(TRAINED, TRAINED, other)
    assert found[4] == spent(TRAINED, other)
    assert found[5] == spent(TRAINED)


def test_spent_with_is_that_of_the_worst_off_image() -> None:
    past = [charge(members([1, 2])), charge(members([2, 3])), charge(members([3, 4]))]

    assert spent_with(charge(members([1, 4])), past, delta=DELTA).spent == spent(TRAINED, TRAINED)
    assert spent_with(charge(members([1, 2, 4])), past, delta=DELTA).spent == spent(*[TRAINED] * 3)


def test_images_that_are_a_group_now_need_the_group_bound() -> None:
    past = [charge(members([1, 2, 3, 9]))]

    three = spent_with(charge(members([1, 2, 3, 5], [1, 1, 1, 2]), unit="group"), past, delta=DELTA)
    one = spent_with(charge(members([1, 5, 6], [1, 1, 1]), unit="group"), past, delta=DELTA)

    assert three.spent == spent(TRAINED, grown(TRAINED, 3))
    assert three.spent.pld == pytest.approx(spent(TRAINED, replace(TRAINED, noise_multiplier=3.0)).pld, rel=1e-9)
    assert three.group_bound
    assert (one.spent, one.group_bound) == (spent(TRAINED, TRAINED), False)  # one image of it was charged


def test_groups_of_sampled_images_cost_what_a_mixture_costs() -> None:
    sampled = DpSgdEvent(0.25, 20.0, 5)
    all_or_none = DpSgdEvent(1 - 0.75**2, 10.0, 5)  # both move together, whenever one of them is there
    past = [charge(members([1, 2]), trained=sampled)]

    worst = spent_with(charge(members([1, 2], [1, 1]), unit="group", trained=sampled), past, delta=DELTA)

    assert worst.spent == spent(sampled, grown(sampled, 2))
    assert spent(sampled, sampled).pld < worst.spent.pld < spent(sampled, all_or_none).pld


def test_a_copy_is_no_second_image() -> None:
    past = [charge(members([1, 1, 2], [1, 1, 2]))]

    worst = spent_with(charge(members([1, 1], [1, 1]), unit="group"), past, delta=DELTA)

    assert (worst.spent, worst.group_bound) == (spent(TRAINED, TRAINED), False)


@pytest.mark.parametrize(
    ("images", "units", "size"),
    [
        ([1, 2], [7, 7], 1),  # the whole group, nothing else
        ([1, 2, 5], [7, 7, 7], 1),  # the whole group and a stranger
        ([1], [7], 2),  # a part of a group: the rest of it stays, and its sum may turn around
        ([2, 3], [7, 7], 4),  # parts of two groups
        ([1, 2, 3], [7, 7, 7], 3),  # one whole, one in part
        ([1, 2, 3, 4], [7, 7, 7, 7], 2),  # two whole groups
        ([5], [7], 0),
    ],
)
def test_part_of_a_group_counts_twice_and_a_whole_one_once(images: list[int], units: list[int], size: int) -> None:
    past = [charge(members([1, 2, 3, 4], [1, 1, 2, 2]), unit="group")]

    worst = spent_with(charge(members(images, units), unit="group"), past, delta=DELTA)

    assert worst.spent == (spent(TRAINED, grown(TRAINED, size)) if size else spent(TRAINED))
    assert worst.group_bound == (size > 1)


def test_an_image_of_a_group_is_charged_twice_where_images_are_protected_now() -> None:
    past = [charge(members([1, 2, 3], [1, 1, 2]), unit="group")]

    worst = {image: spent_with(charge(members([image])), past, delta=DELTA) for image in (1, 3)}

    assert worst[1].spent == spent(TRAINED, grown(TRAINED, 2))
    assert worst[3].spent == spent(TRAINED, TRAINED)  # alone in its group
    assert not worst[1].group_bound  # no image was protected alone before


def test_plans_count_in_full_and_for_the_filter_until_they_are_closed() -> None:
    two = replace(TRAINED, steps=2)
    new = charge(members([1]))

    still_open = spent_with(new, [charge(members([1]), rounds_left=2)], delta=DELTA).spent
    closed = spent_with(new, [charge(members([1]), rounds_left=2, closed=True)], delta=DELTA).spent

    assert still_open == spent(TRAINED, TRAINED)
    assert (closed.pld, closed.rdp) == (spent(TRAINED, TRAINED).pld, spent(TRAINED, two).rdp)
    assert closed.rdp < still_open.rdp


def test_spent_so_far_is_that_of_the_worst_image() -> None:
    past = [charge(members([1, 2], [1, 1]), members([3]), unit="group"), charge(members([2, 3]))]

    assert spent_so_far(past, delta=DELTA) == spent(grown(TRAINED, 2), TRAINED)


def test_spent_with_refuses_what_means_nothing() -> None:
    with pytest.raises(ConfigError, match="promises nothing"):
        spent_with(charge(members([1])), [charge(members([1]), trained=DpSgdEvent(1.0, 0.05, 9))], delta=DELTA)


CHARGES = st.builds(
    lambda images, labels, unit: charge(members(images, labels[: len(images)]), unit=unit),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.lists(st.integers(1, 2), min_size=5, max_size=5),
    st.sampled_from(["image", "group"]),
)


@given(st.lists(CHARGES, min_size=1, max_size=3), st.permutations(range(5)))
@settings(max_examples=25, deadline=None)
def test_spent_depends_on_no_order_and_no_number(past: list[Charge], names: list[int]) -> None:
    def renamed(one: Charge) -> Charge:
        old = one.parts["training"]
        images, units = np.array([names[image - 1] for image in old.images]), 50 - old.units
        order = np.arange(len(images))[::-1]
        return replace(one, parts={"training": Members(images[order], units[order]), "evaluation": members([])})

    before = spent_so_far(past, delta=DELTA)

    assert all(spent_so_far(list(order), delta=DELTA) == before for order in permutations(past))
    assert spent_so_far([renamed(one) for one in past], delta=DELTA) == before


@given(st.lists(CHARGES, min_size=1, max_size=2), CHARGES)
@settings(max_examples=25, deadline=None)
def test_spent_never_falls_when_a_run_is_added(past: list[Charge], more: Charge) -> None:
    before, after = spent_so_far(past, delta=DELTA), spent_so_far([*past, more], delta=DELTA)

    assert after.pld >= before.pld - 1e-9
    assert after.rdp >= before.rdp - 1e-9


def test_two_units_of_a_run_that_turned_out_to_be_one_image_count_twice() -> None:
    past = [charge(members([1, 1, 2], units=[0, 1, 2]))]  # a link has given two images one number

    worst = spent_with(charge(members([1])), past, delta=DELTA)
    other = spent_with(charge(members([2])), past, delta=DELTA)

    assert worst.spent == spent(TRAINED, grown(TRAINED, 2))
    assert other.spent == spent(TRAINED, TRAINED)
    assert worst_image(past, delta=DELTA).spent == spent_so_far(past, delta=DELTA) == spent(grown(TRAINED, 2))


def test_a_clients_own_share_is_priced_over_its_whole_history() -> None:
    """Noise of its own in one run, in shares of four clients in another: alone, only the second is cheaper by half."""
    shared = replace(TRAINED, sampler=CURRENT_SAMPLER, draws_per_step=MAX_DRAWS, noise_shares=4)
    past = [charge(members([1])), charge(members([1]), trained=shared, rounds_left=2, closed=True)]

    worst = spent_with(charge(members([1])), past, delta=DELTA)
    own = replace(TRAINED, noise_multiplier=TRAINED.noise_multiplier / 2)

    assert worst.spent.pld == pytest.approx(spent(*[TRAINED] * 3).pld, abs=1e-9)
    assert worst.alone.pld == pytest.approx(spent(TRAINED, TRAINED, own).pld, abs=1e-9)
    assert worst.alone.rdp == pytest.approx(spent(TRAINED, TRAINED, replace(own, steps=own.steps - 2)).rdp, abs=1e-9)
    found = worst_image([*past, charge(members([1]))], delta=DELTA)
    assert (found.spent, found.alone) == (worst.spent, worst.alone)
    assert spent_with(charge(members([1])), past[:1], delta=DELTA).alone == spent(TRAINED, TRAINED)
