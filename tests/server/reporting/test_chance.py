"""Counts compared with guessing."""

import numpy as np
import pytest

from server.reporting.chance import can_beat_chance, compare_with_chance


def confusion_of(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.6, 0.3, 0.1)])
def test_mean_and_spread_are_those_of_shuffled_predictions(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    labels, predictions = (rng.choice(len(shares), 200, p=shares) for _ in range(2))
    shuffled = [(labels == rng.permutation(predictions)).sum() for _ in range(4000)]

    found = compare_with_chance(confusion_of(labels, predictions, len(shares)))

    assert found.expected == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(4000))
    assert found.stddev == pytest.approx(np.std(shuffled), rel=0.06)


def test_the_spread_of_noise_is_that_of_many_draws() -> None:
    cells, stddev = np.array([[300, 40, 10], [30, 200, 20], [5, 15, 100]]), 6.0
    rng = np.random.default_rng(4)
    drawn = [compare_with_chance(cells + rng.normal(0, stddev, cells.shape)) for _ in range(4000)]
    above = [one.right - one.expected for one in drawn]

    noisy, exact = (compare_with_chance(cells, cell_stddev=s).stddev for s in (stddev, 0.0))

    assert np.sqrt(noisy**2 - exact**2) == pytest.approx(np.std(above), rel=0.05)


def test_a_model_that_always_predicts_the_largest_class_is_at_chance() -> None:
    assert compare_with_chance(np.array([[990, 0], [10, 0]])).at_chance
    assert compare_with_chance(np.array([[990, 0], [10, 0]])).largest_class == 0.99


def test_a_model_below_the_largest_class_may_still_know_something() -> None:
    found = compare_with_chance(np.array([[800, 190], [1, 9]]))

    assert found.right / 1000 < found.largest_class
    assert not found.at_chance


def test_a_model_at_chance_is_taken_for_a_better_one_rarely_and_a_good_one_never_for_chance() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(10, size=360)
    guesses = [confusion_of(labels, rng.integers(10, size=360), 10) for _ in range(500)]

    assert np.mean([compare_with_chance(one).at_chance for one in guesses]) > 0.94
    good = np.where(rng.random(360) < 0.3, labels, rng.integers(10, size=360))
    assert not compare_with_chance(confusion_of(labels, good, 10)).at_chance


@pytest.mark.parametrize(
    ("cells", "stddev", "can"),
    [
        ([[5, 0], [0, 5]], 0.0, True),
        ([[0, 5], [5, 0]], 0.0, True),  # a bad model, but enough images to see it
        ([[1, 0], [0, 1]], 0.0, False),
        ([[50, 0], [0, 0]], 0.0, False),  # one class only
        ([[5, 0], [0, 5]], 9.0, False),
        ([[500, 0], [0, 500]], 9.0, True),
        ([[0, 0], [0, 0]], 0.0, False),
        ([[-3, 1], [0, -2]], 9.0, False),
    ],
)
def test_too_few_counts_or_too_much_noise_show_nothing(cells: list[list[int]], stddev: float, can: bool) -> None:
    assert can_beat_chance(np.array(cells), cell_stddev=stddev) is can
