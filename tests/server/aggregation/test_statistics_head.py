"""The head of all clients' sums, with the noise of those that answered."""

import numpy as np
import pytest

from common.errors import FederationError
from common.models.linear_head import HEAD_WEIGHT
from common.statistics.head import added_up, solve_head
from common.statistics.sums import StatisticsKind, statistics_of
from server.aggregation.statistics_head import head_solver

pytestmark = pytest.mark.numerical
RNG = np.random.default_rng(5)
UNITS = {"a": 30, "b": 50, "c": 20}
FEATURES = {name: RNG.normal(size=(size, 8)).astype(np.float32) for name, size in UNITS.items()}
SUMS = {name: statistics_of("second-moments", rows, np.arange(len(rows)) % 3, 3) for name, rows in FEATURES.items()}


def test_the_head_is_that_of_the_clients_that_answered() -> None:
    solve = head_solver("second-moments", UNITS, {"a": 30.0, "b": 40.0, "c": 120.0})

    found = solve(["a", "b"], [SUMS["a"], SUMS["b"]])[HEAD_WEIGHT]

    # Independent noise adds up in squares, and that of a client that did not answer is not there.
    summed = added_up([SUMS["a"], SUMS["b"]])
    expected = solve_head("second-moments", summed, num_examples=80, noise_stddev=50.0)[HEAD_WEIGHT]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["second-moments", "class-means"])
def test_sums_that_are_too_large_together_make_no_model(kind: StatisticsKind) -> None:
    """Each client's own are finite, which is all that is checked of one reply."""
    sums = statistics_of(kind, FEATURES["a"], np.arange(30) % 3, 3)
    huge = {name: np.full_like(values, 1.7e308) for name, values in sums.items()}

    with pytest.raises(FederationError, match="not finite"):
        head_solver(kind, UNITS, {})(["a", "b"], [huge, huge])


def test_one_sum_of_several_clients_has_the_noise_and_the_size_of_all() -> None:
    solve = head_solver("second-moments", UNITS, {"a": 30.0, "b": 40.0, "c": 120.0})

    together = solve(["a", "b", "c"], [added_up([SUMS["a"], SUMS["b"], SUMS["c"]])])[HEAD_WEIGHT]

    np.testing.assert_array_equal(together, solve(["a", "b", "c"], [SUMS["a"], SUMS["b"], SUMS["c"]])[HEAD_WEIGHT])
