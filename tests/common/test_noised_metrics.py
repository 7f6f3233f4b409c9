"""Figures from counts with noise: worked by hand, and against noise that is really drawn."""

import math

import numpy as np
import pytest

from common.errors import FederationError
from common.metrics import Counts, NoisedCounts, total


def test_accuracy_of_a_pair_is_worked_by_hand() -> None:
    # 80 right, 20 wrong, of 4 clients with noise 5: sqrt(4 x 25 x (20^2 + 80^2)) / 100^2
    accuracy, spread = NoisedCounts(np.array([80, 20]), 4).accuracy(5.0)

    assert accuracy == 0.8
    assert spread == pytest.approx(10 * math.sqrt(6800) / 10_000, rel=1e-12)


def test_accuracy_of_a_matrix_is_worked_by_hand() -> None:
    # 24 right in 3 cells, 6 wrong in 6 cells, noise 2: sqrt(4 x (3 x 6^2 + 6 x 24^2)) / 30^2
    cells = np.array([[10, 1, 1], [1, 9, 1], [1, 1, 5]])

    accuracy, spread = NoisedCounts(cells).accuracy(2.0)

    assert accuracy == 24 / 30
    assert spread == pytest.approx(2 * math.sqrt(3 * 36 + 6 * 576) / 900, rel=1e-12)


def test_accuracy_is_exact_when_there_is_no_noise() -> None:
    assert NoisedCounts(np.array([3, 1]), 7).accuracy(0.0) == (0.75, 0.0)


@pytest.mark.parametrize("true", [np.array([900, 300]), np.array([[400, 60, 40], [30, 300, 20], [50, 80, 220]])])
def test_accuracy_spreads_as_it_says_when_noise_is_drawn(true: np.ndarray) -> None:
    rng, draws, clients, noise = np.random.default_rng(3), 4000, 3, 6.0
    added = np.rint(rng.normal(scale=noise, size=(draws, clients, *true.shape))).astype(np.int64).sum(axis=1)

    found = np.array([NoisedCounts(true + one, clients).accuracy(noise) for one in added])

    exact = NoisedCounts(true).accuracy(0.0)[0]
    spread = found[:, 0].std()
    # The standard error of a standard deviation of so many draws is 1.1 %; one client's noise alone would be 42 % off.
    assert spread == pytest.approx(found[:, 1].mean(), rel=0.06)
    assert abs(found[:, 0].mean() - exact) < 6 * spread / math.sqrt(draws)


@pytest.mark.parametrize("cells", [[0, 0], [5, -5], [-30, 10], [[0, -1], [0, 0]]])
def test_accuracy_is_zero_and_of_no_worth_when_noise_leaves_nothing(cells: list[int]) -> None:
    assert NoisedCounts(np.array(cells)).accuracy(5.0) == (0.0, math.inf)


@pytest.mark.parametrize(("cells", "accuracy"), [([12, -2], 1.0), ([-2, 12], 0.0)])
def test_accuracy_stays_between_zero_and_one_when_a_count_is_negative(cells: list[int], accuracy: float) -> None:
    found, spread = NoisedCounts(np.array(cells)).accuracy(5.0)

    assert found == accuracy
    assert spread == pytest.approx(5 * math.sqrt(144 + 4) / 100)


def test_total_adds_cells_and_clients_up_in_any_order() -> None:
    parts = [NoisedCounts(np.array([5, -2])), NoisedCounts(np.array([7, 1]), 2), NoisedCounts(np.array([-9, 4]))]

    for order in (parts, parts[::-1]):
        summed = total(order)
        assert summed is not None
        assert (summed.cells.tolist(), summed.num_clients) == ([3, 3], 4)
    assert parts[0].cells.tolist() == [5, -2]


def test_total_is_none_when_there_are_no_parts() -> None:
    nothing: list[NoisedCounts] = []

    assert total(nothing) is None


def test_adding_refuses_other_shapes() -> None:
    pair, matrix = NoisedCounts(np.array([1, 2])), NoisedCounts(np.eye(2, dtype=np.int64))

    with pytest.raises(FederationError, match="different shapes"):
        pair + matrix
    with pytest.raises(FederationError, match="different numbers of classes"):
        Counts(np.eye(2, dtype=np.int64), 0.0) + Counts(np.eye(3, dtype=np.int64), 0.0)
