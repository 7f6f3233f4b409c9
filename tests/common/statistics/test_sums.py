"""Sums over features: what they hold, how long one unit's part is, and how it is clipped."""

import math

import numpy as np
import pytest

from common.privacy.clipping import clip_factors
from common.statistics.sums import (
    StatisticsKind,
    from_contribution,
    statistic_shapes,
    statistics_of,
    symmetric_of,
    to_contribution,
    unit_factors,
)

pytestmark = pytest.mark.numerical
KINDS: tuple[StatisticsKind, ...] = ("second-moments", "class-means")
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(9, 5)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 2, 0])
# Units of one, two and four images, whose rows are not side by side.
UNITS = np.array([7, 3, 1, 3, 1, 1, 9, 1, 4])


def whole(kind: StatisticsKind, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The whole matrices of some images side by side, each times its weight, over the norm of one image."""
    wide, chosen = features.astype(np.float64), np.eye(3)[labels]
    if kind == "class-means":
        return np.concatenate([(chosen.T @ wide).ravel(), 0.25 * chosen.sum(axis=0)]) / math.sqrt(1 + 1 / 16)
    return np.concatenate([(wide.T @ wide).ravel(), (chosen.T @ wide).ravel()]) / math.sqrt(2)


def test_sums_are_those_of_a_loop_over_images() -> None:
    sums = statistics_of("second-moments", FEATURES, LABELS, 3)
    means = statistics_of("class-means", FEATURES, LABELS, 3)

    matrix = sum(np.outer(row, row) for row in FEATURES.astype(np.float64))
    by_class = np.array([FEATURES[label == LABELS].astype(np.float64).sum(axis=0) for label in range(3)])
    np.testing.assert_allclose(symmetric_of(sums["second-moment"], 5), matrix, rtol=1e-12)
    np.testing.assert_allclose(sums["class-sums"], by_class, rtol=1e-12)
    np.testing.assert_array_equal(means["class-counts"], [3, 2, 4])
    for kind, found in (("second-moments", sums), ("class-means", means)):
        assert {name: array.shape for name, array in found.items()} == statistic_shapes(kind, 3, 5)
        assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("kind", KINDS)
def test_many_images_are_summed_in_blocks(kind: StatisticsKind) -> None:
    features = RNG.normal(size=(1100, 5)).astype(np.float32)
    labels, factors = np.arange(1100) % 3, RNG.random(1100)

    sums = statistics_of(kind, features, labels, 3, factors)

    each = [factor * whole(kind, features[row : row + 1], labels[row : row + 1]) for row, factor in enumerate(factors)]
    assert np.linalg.norm(to_contribution(kind, sums)) == pytest.approx(np.linalg.norm(np.sum(each, axis=0)), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_unit_length_contributes_a_vector_of_norm_one(kind: StatisticsKind) -> None:
    feature = FEATURES[:1] / np.linalg.norm(FEATURES[0].astype(np.float64))

    contribution = to_contribution(kind, statistics_of(kind, feature, LABELS[:1], 3))

    assert np.linalg.norm(contribution) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_as_far_apart_as_whole_matrices_and_can_be_turned_back(kind: StatisticsKind) -> None:
    ours, theirs = (statistics_of(kind, FEATURES[:rows], LABELS[:rows], 3) for rows in (9, 4))

    apart = np.linalg.norm(to_contribution(kind, ours) - to_contribution(kind, theirs))
    back = from_contribution(kind, to_contribution(kind, ours), 3, 5)

    expected = np.linalg.norm(whole(kind, FEATURES, LABELS) - whole(kind, FEATURES[:4], LABELS[:4]))
    assert apart == pytest.approx(expected, rel=1e-12)
    for name, array in ours.items():
        np.testing.assert_allclose(back[name], array, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("units", [UNITS, np.array([1, 1, 1, 3, 1, 1, 1, 1, 1])], ids=["few", "more than features"])
def test_a_unit_is_clipped_by_the_joint_norm_of_all_its_images(
    kind: StatisticsKind, scale: float, units: np.ndarray
) -> None:
    features = FEATURES * np.float32(scale)

    factors = unit_factors(kind, features, LABELS, units, bound=1.0)

    for unit in np.unique(units):
        rows = unit == units
        norm = np.linalg.norm(whole(kind, features[rows], LABELS[rows]))
        expected = clip_factors(np.array([norm]), max_grad_norm=1.0)[0]
        np.testing.assert_allclose(factors[rows], expected, rtol=1e-12)
        assert np.linalg.norm(whole(kind, features[rows], LABELS[rows])) * factors[rows][0] <= 1 + 1e-12


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_is_not_finite_counts_for_nothing_and_spoils_nothing(kind: StatisticsKind, odd: float) -> None:
    features = FEATURES.copy()
    features[2, 1] = odd

    factors = unit_factors(kind, features, LABELS, UNITS, bound=1.0)
    sums = statistics_of(kind, features, LABELS, 3, factors)

    others = UNITS[2] != UNITS
    assert (factors == 0).tolist() == (~others).tolist()
    expected = statistics_of(kind, FEATURES[others], LABELS[others], 3, factors[others])
    for name, array in expected.items():
        np.testing.assert_allclose(sums[name], array, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_sum_to_zeros(kind: StatisticsKind) -> None:
    none = np.zeros(0, dtype=np.int64)

    factors = unit_factors(kind, FEATURES[:0], none, none, bound=1.0)

    assert not any(array.any() for array in statistics_of(kind, FEATURES[:0], none, 3, factors).values())
