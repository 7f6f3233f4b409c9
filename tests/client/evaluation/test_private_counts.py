"""Noise of counts is the discrete Gaussian of the plan, which a rounded one is not."""

import numpy as np
import pytest

from client.evaluation.private_counts import noised_matrix, noised_pair
from common.metrics import Counts
from common.privacy.noise import SecureStream

SIDE = 20
# At this parameter a discrete Gaussian is 0 but for 0.8 % of its draws, and a rounded one but for 9.6 %.
NARROW = 0.3


def nonzero(draws: np.ndarray) -> int:
    return int(np.count_nonzero(draws))


def test_noise_of_a_matrix_is_discrete_and_not_rounded() -> None:
    counts = Counts(np.arange(SIDE * SIDE).reshape(SIDE, SIDE), float("nan"))

    found = noised_matrix(counts, noise_stddev=NARROW, stream=SecureStream())

    # About 3 of 400 are expected; 15 or more come once in ten million times.
    assert nonzero(found.cells - counts.confusion) < 15


def test_noise_of_a_pair_is_discrete_and_not_rounded() -> None:
    counts, stream = Counts(np.array([[7, 2], [1, 0]]), float("nan")), SecureStream()

    cells = [noised_pair(counts, noise_stddev=NARROW, stream=stream).cells for _ in range(SIDE * SIDE // 2)]

    assert nonzero(np.stack(cells) - [7, 3]) < 15


@pytest.mark.parametrize("noise_stddev", [4.0, 25.0])
def test_noise_has_the_scale_of_the_plan(noise_stddev: float) -> None:
    counts = Counts(np.zeros((SIDE, SIDE), dtype=np.int64), float("nan"))

    found = noised_matrix(counts, noise_stddev=noise_stddev, stream=SecureStream()).cells

    # The standard error of a standard deviation of 400 draws is 3.5 %.
    assert found.std() == pytest.approx(noise_stddev, rel=0.25)
    assert found.dtype == np.int64
