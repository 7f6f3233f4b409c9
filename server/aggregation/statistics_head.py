"""Solver of the head from the sums that the clients of a run send."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from common.arrays import Arrays
from common.errors import FederationError
from common.statistics.head import added_up, solve_head
from common.statistics.sums import StatisticsKind


def head_solver(
    kind: StatisticsKind, num_units: Mapping[str, int], noise_stddevs: Mapping[str, float]
) -> Callable[[Sequence[str], Iterable[Arrays]], Arrays]:
    """Return a function from the clients' sums to the head that follows from them.

    The function takes the names of the clients in the sums, and the sums of each client or of several together. It
    raises `FederationError` where the sums of all clients are too large for a number.

    Args:
        kind: What the clients sum.
        num_units: Client name -> its declared number of units.
        noise_stddevs: Client name -> noise that it adds to each value of its contribution; empty without noise. Both
            hold public constants, so that they cost nothing.
    """

    def solve(names: Sequence[str], sums: Iterable[Arrays]) -> Arrays:
        noise = math.sqrt(sum(noise_stddevs.get(name, 0.0) ** 2 for name in names))
        units = sum(num_units[name] for name in names)
        with np.errstate(over="ignore"):
            added = added_up(sums)
        # The solver itself would fail with an error of linear algebra.
        if not all(np.isfinite(values).all() for values in added.values()):
            raise FederationError("the sums of the clients are not finite together; no model follows from them")
        return solve_head(kind, added, num_examples=units, noise_stddev=noise)

    return solve
