"""A synthetic federation stands for all images of its clients, however many it draws.

Drives `simulations.advice.federation`.
"""

import numpy as np
import pytest

from common.models.linear_head import HEAD_WEIGHT
from simulations.advice.features import TASKS
from simulations.advice.federation import SizeGroup, SyntheticFederation, group_sizes


def federation(*groups: SizeGroup, most_rows: int = 10_000) -> SyntheticFederation:
    return SyntheticFederation(
        TASKS[1], groups, num_classes=4, num_features=32, most_rows=most_rows, rng=np.random.default_rng(0)
    )


def test_groups_keep_clients_and_images() -> None:
    sizes = [*range(100, 180, 2), 5_000]

    groups = group_sizes(sizes)

    assert len(groups) <= 4
    assert sum(group.num_clients for group in groups) == len(sizes)
    assert sum(group.num_clients * group.num_units for group in groups) == pytest.approx(sum(sizes), rel=0.01)


def test_a_sum_of_few_drawn_images_is_as_long_as_that_of_all() -> None:
    groups = SizeGroup(3, 400), SizeGroup(1, 1_200)
    whole, drawn = federation(*groups), federation(*groups, most_rows=600)

    every = whole.gradient_sums(whole.initial_head(), max_grad_norm=0.1)
    few = drawn.gradient_sums(drawn.initial_head(), max_grad_norm=0.1)

    assert drawn.units_per_row == 4
    assert [len(drawn.features), drawn.total_units, drawn.num_clients] == [600, 2_400, 4]
    for mine, other in zip(few, every, strict=True):
        assert np.linalg.norm(mine) == pytest.approx(np.linalg.norm(other), rel=0.25)


def test_a_group_has_its_own_images() -> None:
    fed = federation(SizeGroup(1, 40), SizeGroup(2, 10))

    parts = fed.gradient_sums(fed.initial_head(), max_grad_norm=1e-3)

    # Each clipped gradient is as long as the bound, so no sum is longer than its number of images.
    assert [np.linalg.norm(part) <= 1e-3 * units for part, units in zip(parts, (40, 20), strict=True)] == [True, True]
    assert np.linalg.norm(parts[0]) > 1e-3 * 20 / 4


def test_the_error_is_that_of_test_images() -> None:
    fed = federation(SizeGroup(2, 50))
    means = np.stack([fed.features[fed.labels == number].mean(axis=0) for number in range(4)])

    assert fed.error_of({HEAD_WEIGHT: means - means.mean(axis=0)}) < 0.2
    assert fed.error_of(fed.initial_head()) == pytest.approx(0.75, abs=0.05)
