"""Sums over features as an auditor reads them, apart from the client's own code.

It states again how the values of a release are weighed, so that a client that weighs them otherwise is found.
"""

import math

import numpy as np

from common.arrays import Arrays

# Value of `training.statistics` -> tensor -> weight of a value. A weight is over the joint norm of one image.
_WEIGHTS = {
    "second-moments": {"second-moment": math.sqrt(1 / 2), "class-sums": math.sqrt(1 / 2)},
    "class-means": {"class-sums": 4 / math.sqrt(17), "class-counts": 1 / math.sqrt(17)},
}


def released_sizes(kind: str, num_classes: int, num_features: int) -> dict[str, int]:
    """Return the number of values of each tensor, in order."""
    sizes = {
        "second-moment": sum(range(num_features + 1)),
        "class-sums": num_classes * num_features,
        "class-counts": num_classes,
    }
    return {name: sizes[name] for name in _WEIGHTS[kind]}


def weighed_sums(kind: str, sums: Arrays, num_features: int) -> np.ndarray:
    """Return released sums as a vector whose values have equal noise, float64.

    Each value off the diagonal stands for two of the whole matrix, so it weighs the root of 2.
    """
    parts = []
    for name, weight in _WEIGHTS[kind].items():
        values = np.asarray(sums[name], dtype=np.float64).ravel() * weight
        if name == "second-moment":
            rows, columns = np.triu_indices(num_features)
            values[rows != columns] *= math.sqrt(2)
        parts.append(values)
    return np.concatenate(parts)
