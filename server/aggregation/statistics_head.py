"""Solver of the head from the sums that the clients of a run send."""

import math
from collections.abc import Callable, Mapping

from common.arrays import Arrays
from common.statistics.head import added_up, solve_head
from common.statistics.sums import StatisticsKind


def head_solver(
    kind: StatisticsKind, num_units: Mapping[str, int], noise_stddevs: Mapping[str, float]
) -> Callable[[Mapping[str, Arrays]], Arrays]:
    """Return a function from the clients' sums to the head that follows from them.

    Args:
        kind: What the clients sum.
        num_units: Client name -> its declared number of units.
        noise_stddevs: Client name -> noise in each value of its contribution; empty without noise. Both hold public
            constants, so that they cost nothing.
    """

    def solve(sums: Mapping[str, Arrays]) -> Arrays:
        names = sorted(sums)
        noise = math.sqrt(sum(noise_stddevs.get(name, 0.0) ** 2 for name in names))
        units = sum(num_units[name] for name in names)
        return solve_head(kind, added_up([sums[name] for name in names]), num_examples=units, noise_stddev=noise)

    return solve
