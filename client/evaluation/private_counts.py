"""Counts of predictions with discrete Gaussian noise.

Under DP these counts are the only figures that leave a client.
"""

import numpy as np

from common.metrics import Counts, NoisedCounts
from common.privacy.discrete_gaussian import ByteStream, discrete_gaussian


def noised_pair(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """Return the number of right and of wrong predictions, with noise in each.

    Guarantee: adding or removing one unit changes one of the two true counts by 1, so the release is one
    `CountsEvent(noise_stddev, 1)`. Both results may be negative. `counts` must hold exactly one prediction for each
    unit, and `stream` must be fresh and used for this noise only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    # Right and wrong, not right and total: one unit would change both of those.
    right = int(np.trace(counts.confusion))
    return _noised(np.array([right, counts.num_examples - right]), noise_stddev, stream)


def noised_matrix(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """Return the confusion matrix, with noise in each cell.

    Guarantee and conditions are those of `noised_pair`, since one unit counts in one cell only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    return _noised(counts.confusion, noise_stddev, stream)


def _noised(exact: np.ndarray, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    # Discrete noise. The last bits of floating-point noise on a count would reveal the count.
    noise = discrete_gaussian(exact.size, noise_stddev=noise_stddev, stream=stream)
    return NoisedCounts(exact.astype(np.int64) + noise.reshape(exact.shape))
