"""A linear head in closed form from sums over features, with or without noise.

Everything here follows from released sums and public constants, so it costs no privacy.
"""

import math
from collections.abc import Iterable

import numpy as np

from common.arrays import Arrays
from common.models.linear_head import HEAD_WEIGHT
from common.statistics.sums import (
    CLASS_COUNTS,
    CLASS_SUMS,
    SECOND_MOMENT,
    StatisticsKind,
    scale_of,
    symmetric_of,
    weight_of,
)
from common.system.threads import pin_to_one_thread

# Ridge penalty for each example, in squared lengths of a feature. Fitted on digits and CIFAR-10 without noise.
PENALTY = 1e-5
# Floor of the second moment's eigenvalues, in sqrt(d) standard deviations of the noise on its diagonal. Noise alone
# has eigenvalues up to sqrt(2). Fitted on digits and CIFAR-10.
_FLOOR = 0.5
# The solution estimates chances from 0 to 1. As logits they would leave all classes about equally likely.
_LOGITS = 10.0


def added_up(parts: Iterable[Arrays]) -> Arrays:
    """Return the sums of all clients, float64.

    The order of the clients decides the last bits.
    """
    total: Arrays = {}
    for part in parts:
        # 0 first, as Python's own sum begins, which turns a negative zero into a positive one.
        total = {name: np.asarray(total.get(name, 0) + values, dtype=np.float64) for name, values in part.items()}
    return total


def solve_head(kind: StatisticsKind, sums: Arrays, *, num_examples: int, noise_stddev: float) -> Arrays:
    """Return the linear head that follows from sums over features.

    For `second-moments` it is the ridge regression of the classes on the features. Noise makes the second moment
    indefinite: its eigenvalues below a floor are raised to it. For `class-means` the weights of a class are its mean
    minus the average of all means.

    Args:
        kind: What was summed.
        sums: Tensors of `statistics_of`, added up over clients.
        num_examples: Number of units that the clients declare, at least 1.
        noise_stddev: Standard deviation of the noise in the contribution, all clients' together; 0 without noise.

    Returns:
        `head.weight`, (classes, d) float32.
    """
    class_sums = sums[CLASS_SUMS]
    if kind == "class-means":
        least = max(1.0, noise_stddev / weight_of(kind, CLASS_COUNTS))
        means = class_sums / np.maximum(sums[CLASS_COUNTS], least)[:, None]
        weight = means - means.mean(axis=0)
    else:
        size = class_sums.shape[1]
        floor = _FLOOR * noise_stddev * scale_of(kind) * math.sqrt(size)
        # The number of threads changes the last bits, and every engine is to give the same model.
        pin_to_one_thread()
        values, vectors = np.linalg.eigh(symmetric_of(sums[SECOND_MOMENT], size))
        inverse = 1.0 / (np.maximum(values, floor) + PENALTY * num_examples)
        weight = ((class_sums @ vectors) * inverse) @ vectors.T
    return {HEAD_WEIGHT: (_LOGITS * weight).astype(np.float32)}
