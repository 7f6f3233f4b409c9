"""The head of summed features: ridge regression without noise, and what noise may not break."""

import numpy as np
import pytest

from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT
from common.statistics.head import added_up, solve_head
from common.statistics.sums import statistics_of

pytestmark = pytest.mark.numerical
RNG = np.random.default_rng(5)
CENTRES = RNG.normal(size=(3, 20))
LABELS = np.arange(600) % 3
FEATURES = CENTRES[LABELS] + 0.8 * RNG.normal(size=(600, 20))
FEATURES = (FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)).astype(np.float32)


def noised(sums: Arrays, stddev: float, seed: int = 0) -> Arrays:
    """Sums with the noise of a release, whose values off the diagonal have less."""
    rng, size = np.random.default_rng(seed), sums["class-sums"].shape[1]
    rows, columns = np.triu_indices(size)
    off = np.where(rows == columns, np.sqrt(2), 1.0)
    return {
        "second-moment": sums["second-moment"] + stddev * off * rng.normal(size=len(off)),
        "class-sums": sums["class-sums"] + stddev * np.sqrt(2) * rng.normal(size=(3, size)),
    }


def accuracy(weight: np.ndarray) -> float:
    return float((np.argmax(FEATURES @ weight.T, axis=1) == LABELS).mean())


def test_the_head_is_the_ridge_regression_of_the_classes() -> None:
    sums = statistics_of("second-moments", FEATURES, LABELS, 3)

    head = solve_head("second-moments", sums, num_examples=600, noise_stddev=0.0)[HEAD_WEIGHT]

    # By least squares over the images and one more row for each feature, without the sums.
    rows = np.concatenate([FEATURES, np.sqrt(1e-5 * 600) * np.eye(20)])
    wanted = np.concatenate([np.eye(3)[LABELS], np.zeros((20, 3))])
    expected = 10 * np.linalg.lstsq(rows.astype(np.float64), wanted, rcond=None)[0].T
    np.testing.assert_allclose(head, expected, rtol=1e-4, atol=1e-5)
    assert head.dtype == np.float32


@pytest.mark.parametrize("kind", ["second-moments", "class-means"])
@pytest.mark.parametrize("parts", [2, 7, 600])
def test_a_split_among_clients_changes_no_prediction(kind: str, parts: int) -> None:
    owners = np.random.default_rng(parts).integers(0, parts, 600)
    split = [statistics_of(kind, FEATURES[owners == who], LABELS[owners == who], 3) for who in range(parts)]  # type: ignore[arg-type]

    whole = solve_head(kind, statistics_of(kind, FEATURES, LABELS, 3), num_examples=600, noise_stddev=0.0)  # type: ignore[arg-type]
    summed = solve_head(kind, added_up(split), num_examples=600, noise_stddev=0.0)  # type: ignore[arg-type]

    scores = [FEATURES @ head[HEAD_WEIGHT].T for head in (whole, summed)]
    np.testing.assert_array_equal(scores[0].argmax(axis=1), scores[1].argmax(axis=1))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stddev", [0.3, 3.0, 300.0])
def test_a_noised_second_moment_is_repaired_by_the_noise_that_was_declared(stddev: float) -> None:
    sums = noised(statistics_of("second-moments", FEATURES, LABELS, 3), stddev) | {"class-sums": np.eye(20)}

    head = solve_head("second-moments", sums, num_examples=600, noise_stddev=stddev)[HEAD_WEIGHT]

    # With one class a feature the head is the inverse. No eigenvalue is below half of sqrt(2 d) standard deviations.
    inverse = np.linalg.eigvalsh(head.astype(np.float64))
    assert (inverse > 0).all()
    assert inverse.max() <= 10 / (0.5 * stddev * np.sqrt(2 * 20)) * (1 + 1e-5)


def test_the_floor_follows_the_noise_and_helps() -> None:
    sums = statistics_of("second-moments", FEATURES, LABELS, 3)
    heads = [
        [
            solve_head("second-moments", noised(sums, 10.0, seed), num_examples=600, noise_stddev=told)
            for seed in range(9)
        ]
        for told in (10.0, 0.0)
    ]

    told, untold = (np.median([accuracy(head[HEAD_WEIGHT]) for head in each]) for each in heads)

    assert told > untold + 0.1


def test_class_means_are_worked_by_hand() -> None:
    sums = {"class-sums": np.array([[2.0, 4.0], [9.0, 0.0]]), "class-counts": np.array([2.0, 3.0])}

    head = solve_head("class-means", sums, num_examples=5, noise_stddev=0.0)[HEAD_WEIGHT]

    np.testing.assert_allclose(head, 10 * np.array([[-1.0, 1.0], [1.0, -1.0]]))


@pytest.mark.parametrize("count", [-40.0, 0.0, 0.2])
def test_a_count_that_noise_made_small_or_negative_does_not_blow_up_a_mean(count: float) -> None:
    sums = {"class-sums": np.array([[2.0, 4.0], [90.0, 0.0]]), "class-counts": np.array([count, 30.0])}

    head = solve_head("class-means", sums, num_examples=5, noise_stddev=2.0)[HEAD_WEIGHT]

    # Counts have a noise of 2 x 4.12, and none counts as less.
    np.testing.assert_allclose(
        head[0] - head[1], 10 * (np.array([2.0, 4.0]) / (2 * np.sqrt(17)) - [3.0, 0.0]), rtol=1e-5
    )
