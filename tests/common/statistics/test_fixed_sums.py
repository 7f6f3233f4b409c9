"""Sums over features on the grid of a secure sum: how far they move the head, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from common.arrays import Arrays
from common.errors import ConfigError
from common.models.linear_head import HEAD_WEIGHT
from common.secagg.primitives.fixed_point import FixedPoint
from common.statistics.fixed_sums import ROOM, contribution_point, fits
from common.statistics.head import PENALTY, added_up, solve_head
from common.statistics.sums import StatisticsKind, from_contribution, scale_of, statistics_of, to_contribution

pytestmark = pytest.mark.numerical
IMAGES, LABELS = load_digits(return_X_y=True)
FEATURES = IMAGES - IMAGES.mean(axis=1, keepdims=True)
FEATURES = (FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)).astype(np.float32)
# Clients of 900 images to a single one.
OWNERS = np.repeat(np.arange(5), [900, 500, 390, 6, 1])
CLIENTS = 5


def parts_of(kind: StatisticsKind) -> list[Arrays]:
    return [statistics_of(kind, FEATURES[who == OWNERS], LABELS[who == OWNERS], 10) for who in range(CLIENTS)]


def point_of(kind: StatisticsKind, *, num_clients: int = CLIENTS, word_bits: int = 64) -> FixedPoint:
    size = to_contribution(kind, parts_of(kind)[0]).size
    return contribution_point(kind, size, total_units=len(LABELS), num_clients=num_clients, word_bits=word_bits)


def summed(kind: StatisticsKind, point: FixedPoint) -> Arrays:
    words = [point.encode(to_contribution(kind, part)) for part in parts_of(kind)]
    values = point.decode(np.sum(words, axis=0, dtype=np.uint64))
    return from_contribution(kind, values, 10, FEATURES.shape[1])


def head_of(kind: StatisticsKind, sums: Arrays) -> np.ndarray:
    return solve_head(kind, sums, num_examples=len(LABELS), noise_stddev=0.0)[HEAD_WEIGHT]


@pytest.mark.parametrize("kind", ["second-moments", "class-means"])
def test_the_sum_is_that_of_plain_sums_within_a_step_of_each_client(kind: StatisticsKind) -> None:
    point = point_of(kind)
    exact, found = (to_contribution(kind, sums) for sums in (added_up(parts_of(kind)), summed(kind, point)))

    # Float64 itself rounds the sums of up to 1,797 by this much.
    assert np.abs(found - exact).max() <= CLIENTS * point.step + len(LABELS) * 2.0**-51
    assert CLIENTS * point.step < 2.0**-46


@pytest.mark.parametrize("kind", ["second-moments", "class-means"])
def test_secure_sums_change_no_prediction_on_the_digits(kind: StatisticsKind) -> None:
    plain, secure = (head_of(kind, sums) for sums in (added_up(parts_of(kind)), summed(kind, point_of(kind))))

    assert np.array_equal((FEATURES @ plain.T).argmax(axis=1), (FEATURES @ secure.T).argmax(axis=1))
    # The grid moves it by less than float32 rounds it.
    np.testing.assert_allclose(secure, plain, atol=2.0**-22 * np.abs(plain).max())


@pytest.mark.parametrize("digits", [10, 16, 24])
def test_the_head_moves_by_no_more_than_the_bound_for_a_grid(digits: int) -> None:
    """On grids so coarse that the move is far above the rounding of the solver."""
    kind: StatisticsKind = "second-moments"
    fine = point_of(kind)
    coarse = replace(fine, scale_bits=digits, largest=fine.largest >> 20, largest_squares=1 << 100)
    plain, secure = (head_of(kind, sums) / 10 for sums in (added_up(parts_of(kind)), summed(kind, coarse)))
    size = to_contribution(kind, parts_of(kind)[0]).size

    error = CLIENTS * coarse.step * scale_of(kind) * np.sqrt(size)
    bound = (1 + np.linalg.norm(plain)) * error / (PENALTY * len(LABELS))
    assert 0 < np.linalg.norm(secure - plain) <= bound


def test_sums_that_do_not_fit_in_the_words_are_refused() -> None:
    assert point_of("second-moments", num_clients=10_000).step > 0
    with pytest.raises(ConfigError, match="do not fit in words of 32 bits"):
        point_of("second-moments", word_bits=32)
    with pytest.raises(ConfigError, match="10,000,000 clients do not fit"):
        point_of("second-moments", num_clients=10_000_000)


def test_every_client_may_be_at_its_bound_at_once() -> None:
    point = point_of("class-means")
    sizes = np.bincount(OWNERS)

    total = np.sum([point.encode(np.array([ROOM * float(size), 0.0])) for size in sizes], axis=0, dtype=np.uint64)

    assert point.decode(total).tolist() == [float(ROOM * sizes.sum()), 0.0]


@pytest.mark.parametrize(
    ("value", "allowed"), [(10.0 * ROOM, True), (10.1 * ROOM, False), (np.nan, False), (np.inf, False), (1e200, False)]
)
def test_a_contribution_of_far_more_images_than_declared_does_not_fit(value: float, allowed: bool) -> None:
    assert fits(np.array([value, 0.0]), 10) == allowed
