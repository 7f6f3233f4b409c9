"""Counts by subgroup: one vote a unit, sums over clients, and intervals of their shares."""

import numpy as np
import pytest

from common.errors import FederationError
from common.metrics import NoisedCounts, wilson_interval
from common.subgroup_counts import SubgroupCounts, subgroup_counts, subgroup_figures

NAMES = ("f", "m", "other")


def scored(count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 3, count), rng.integers(0, 2, count)


def test_counts_are_those_of_each_unit_and_an_empty_subgroup_is_there() -> None:
    logits, labels, subgroups = scored()

    cells = subgroup_counts(logits, labels, subgroups, 3).cells

    right = logits.argmax(axis=1) == labels
    expected = [[int((right & (subgroups == at)).sum()), int((~right & (subgroups == at)).sum())] for at in range(3)]
    assert cells.tolist() == expected
    assert cells[2].tolist() == [0, 0]
    assert subgroup_counts(logits[:0], labels[:0], subgroups[:0], 3).cells.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [np.nan, 1.0, 2.0], [np.inf, np.inf, 0.0], [-1e3, 0, 9]])
@pytest.mark.parametrize("subgroup", [0, 2])
def test_unit_moves_one_count_by_one(row: list[float], subgroup: int) -> None:
    logits, labels, subgroups = scored()
    before = subgroup_counts(logits, labels, subgroups, 3).cells
    more = np.vstack([[row], logits]).astype(np.float32), np.append(1, labels), np.append(subgroup, subgroups)

    moved = subgroup_counts(*more, 3).cells - before

    assert (moved.min(), moved.sum(), moved[subgroup].sum()) == (0, 1, 1)


def test_figures_are_of_all_clients_together() -> None:
    logits, labels, subgroups = scored()
    first, second = (subgroup_counts(logits[r], labels[r], subgroups[r], 3) for r in (slice(0, 9), slice(9, None)))

    summed = first + second

    assert np.array_equal(summed.cells, subgroup_counts(logits, labels, subgroups, 3).cells)
    assert summed.num_clients == 2
    with pytest.raises(FederationError, match="different subgroups"):
        _ = first + SubgroupCounts(np.zeros((2, 2), np.int64))


def test_exact_shares_have_intervals_of_wilson_and_no_share_without_units() -> None:
    found = subgroup_figures(SubgroupCounts(np.array([[8, 2], [0, 0], [0, 5]])), NAMES)

    low, high = wilson_interval(np.array([8]), np.array([10]))
    assert found["f"] == {"right": 8, "wrong": 2, "accuracy": 0.8, "low": float(low[0]), "high": float(high[0])}
    assert found["m"] == {"right": 0, "wrong": 0, "accuracy": None, "low": None, "high": None}
    assert found["other"]["accuracy"] == 0.0


def test_noised_shares_have_the_error_of_the_noise_and_none_where_noise_is_all() -> None:
    counts = SubgroupCounts(np.array([[80, 20], [-3, 2], [1, 0]]), num_clients=4)

    found = subgroup_figures(counts, NAMES, noise_stddev=2.0)

    accuracy, stddev = NoisedCounts(np.array([80, 20]), 4).accuracy(2.0)
    assert (found["f"]["low"], found["f"]["high"]) == (accuracy - stddev, accuracy + stddev)
    assert (found["m"]["accuracy"], found["other"]["accuracy"]) == (None, None)
    assert found["m"]["right"] == -3, "noise may make a count negative, and cutting it off would bias the sum"
