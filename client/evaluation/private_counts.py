"""Counts of held-out units under discrete Gaussian noise: the only figures that leave under DP."""

import numpy as np

from common.metrics import Counts, NoisedCounts
from common.privacy.discrete_gaussian import ByteStream, discrete_gaussian


def noised_pair(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """How many units were predicted right and wrong, with noise in each.

    Guarantee: one unit more or less moves one of the two true counts by 1, so the release is one
    `CountsEvent(noise_stddev, 1)`. Both may come out negative.

    Args:
        counts: One vote a unit.
        noise_stddev: Of each count.
        stream: A fresh stream used for this noise only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    right = int(np.trace(counts.confusion))
    return _noised(np.array([right, counts.num_examples - right]), noise_stddev, stream)


def noised_matrix(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """The confusion matrix, with noise in each cell; see `noised_pair`.

    Args:
        counts: One vote a unit.
        noise_stddev: Of each cell.
        stream: A fresh stream used for this noise only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    return _noised(counts.confusion, noise_stddev, stream)


def _noised(exact: np.ndarray, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    noise = discrete_gaussian(exact.size, noise_stddev=noise_stddev, stream=stream)
    return NoisedCounts(exact.astype(np.int64) + noise.reshape(exact.shape))
