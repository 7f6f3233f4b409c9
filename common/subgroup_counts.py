"""Right and wrong predictions by subgroup, such as sex or scanner.

Counts are added over clients before accuracy is derived. The subgroups are a public list, and each unit has one vote in
one of its cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import FederationError
from common.metrics import NoisedCounts, interval, wilson_interval

# Subgroup of every value that the public list does not name, also of a missing one.
OTHER = "other"


@dataclass(frozen=True)
class SubgroupCounts:
    """Votes of held-out units by subgroup, exact or with noise in each count.

    The sum of two clients' counts is that of all their units. `cells` are (subgroups, 2) int64, units predicted right
    and wrong. Noise can make a count negative. Each count contains the noise of `num_clients` clients.
    """

    cells: np.ndarray
    num_clients: int = 1

    def __add__(self, other: "SubgroupCounts") -> "SubgroupCounts":
        if self.cells.shape != other.cells.shape:
            raise FederationError("counts over different subgroups cannot be added")
        return SubgroupCounts(self.cells + other.cells, self.num_clients + other.num_clients)


def subgroup_counts(
    logits: np.ndarray, labels: np.ndarray, subgroups: np.ndarray, num_subgroups: int
) -> SubgroupCounts:
    """Count right and wrong predictions of units by subgroup.

    `logits` are (units, classes), `labels` and `subgroups` (units,). Guarantee: a unit adds 1 to exactly one count, so
    it changes the counts by 1 in L2 norm, and no other unit's vote. A subgroup without units has counts of 0.
    """
    cells = np.zeros((num_subgroups, 2), dtype=np.int64)
    if len(labels):
        np.add.at(cells, (subgroups, (logits.argmax(axis=1) != labels).astype(np.int64)), 1)
    return SubgroupCounts(cells)


def subgroup_figures(counts: SubgroupCounts, names: Sequence[str], *, noise_stddev: float = 0.0) -> dict[str, Any]:
    """Return the accuracy of each subgroup with its interval, at no cost in privacy.

    `noise_stddev` is that of each client in one count, 0 for exact counts. The interval is then one standard deviation
    of the noise, and Wilson's of 95 % for exact counts. Figures are None where noise or a lack of units hides them.
    """
    return {
        name: _figures(NoisedCounts(cells, counts.num_clients), noise_stddev)
        for name, cells in zip(names, counts.cells, strict=True)
    }


def _figures(counts: NoisedCounts, noise_stddev: float) -> dict[str, Any]:
    right, wrong = counts.cells.tolist()
    found: dict[str, Any] = {"right": right, "wrong": wrong, "accuracy": None, "low": None, "high": None}
    if not noise_stddev:
        if right + wrong:
            ends = wilson_interval(np.array([right]), np.array([right + wrong]))
            found |= {"accuracy": right / (right + wrong), "low": float(ends[0][0]), "high": float(ends[1][0])}
        return found
    accuracy, stddev = counts.accuracy(noise_stddev)
    # A share with an error of 1 may be anything.
    if math.isfinite(stddev) and stddev <= 1:
        low, high = interval(accuracy, stddev)
        found |= {"accuracy": accuracy, "low": low, "high": high}
    return found
