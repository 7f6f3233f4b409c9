"""Counts against torch, scores against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

from common.metrics import METRICS, Counts, NoisedCounts, count, score, total

_MATRICES = st.integers(2, 6).flatmap(lambda k: arrays(np.int64, (k, k), elements=st.sampled_from([0, 0, 1, 2, 9])))


def _random(examples: int, classes: int = 5, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(examples)
    logits = (spread * rng.standard_normal((examples, classes))).astype(np.float32)
    return logits, rng.integers(classes, size=examples)


def _as_lists(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.nonzero(confusion)
    times = confusion[true, predicted]
    return np.repeat(true, times), np.repeat(predicted, times)


@given(_MATRICES)
def test_score_equals_scikit_learn(confusion: np.ndarray) -> None:
    true, predicted = _as_lists(confusion)
    scores = score(confusion)
    if not len(true):
        assert (scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.weighted_f1) == (0, 0, 0, 0)
        return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        balanced = balanced_accuracy_score(true, predicted)
    each = precision_recall_fscore_support(true, predicted, labels=range(len(confusion)), zero_division=0)

    assert scores.accuracy == pytest.approx(accuracy_score(true, predicted))
    assert scores.balanced_accuracy == pytest.approx(balanced)
    assert scores.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    assert scores.weighted_f1 == pytest.approx(f1_score(true, predicted, average="weighted", zero_division=0))
    assert scores.precision == pytest.approx(each[0])
    assert scores.recall == pytest.approx(each[1])
    assert scores.f1 == pytest.approx(each[2])


def test_score_of_two_classes_worked_by_hand() -> None:
    scores = score(np.array([[8, 2], [0, 10]]))

    assert scores.accuracy == pytest.approx(18 / 20)
    assert scores.balanced_accuracy == pytest.approx((0.8 + 1.0) / 2)
    assert scores.precision == pytest.approx([1.0, 10 / 12])
    assert scores.f1 == pytest.approx([16 / 18, 20 / 22])


@pytest.mark.parametrize("spread", [0.0, 3.0, 300.0])
def test_count_sums_the_loss_of_torch(spread: float) -> None:
    logits, labels = _random(200, spread=spread)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(labels), reduction="sum"
    )

    assert count(logits, labels).loss_sum == pytest.approx(expected.item(), rel=1e-12)


def test_count_puts_true_labels_in_rows() -> None:
    logits = np.array([[0.0, 5.0, 1.0], [0.0, 5.0, 1.0], [9.0, 5.0, 1.0]])

    counts = count(logits, np.array([2, 2, 0]))

    assert counts.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]
    assert counts.confusion.dtype == np.int64
    assert counts.num_examples == 3


def test_count_of_parts_adds_up_to_the_count_of_all() -> None:
    logits, labels = _random(90)
    whole = count(logits, labels)
    parts = [count(logits[rows], labels[rows]) for rows in np.array_split(np.arange(90), [10, 10, 55])]

    summed = total(parts)

    assert summed is not None
    assert np.array_equal(summed.confusion, whole.confusion)
    assert summed.loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)
    assert summed.num_examples == 90


def test_count_leaves_its_arguments_alone() -> None:
    logits, labels = _random(10)
    before = logits.copy(), labels.copy()

    count(logits, labels)

    assert np.array_equal(logits, before[0])
    assert np.array_equal(labels, before[1])


def test_count_is_zero_when_there_are_no_examples() -> None:
    counts = count(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))

    assert counts.confusion.tolist() == np.zeros((4, 4)).tolist()
    assert (counts.num_examples, counts.loss_sum) == (0, 0.0)


def test_total_is_none_when_there_are_no_parts() -> None:
    assert total([]) is None


def test_total_does_not_change_its_first_part() -> None:
    first = Counts(np.eye(2, dtype=np.int64), 1.0)

    summed = total([first, first])

    assert summed is not None
    assert summed.confusion.tolist() == [[2, 0], [0, 2]]
    assert first.confusion.tolist() == [[1, 0], [0, 1]]


def test_metrics_are_worked_out_by_hand_from_counts() -> None:
    counts = Counts(np.array([[3, 1], [2, 2]]), 4.0)

    values = {metric.key: metric.compute(counts) for metric in METRICS}

    # Class a has recall 3/4 and F1 6/9, class b has recall 1/2 and F1 4/7; both occur equally often.
    f1 = (6 / 9 + 4 / 7) / 2
    expected = {"accuracy": 5 / 8, "macro_f1": f1, "weighted_f1": f1, "balanced_accuracy": 5 / 8, "loss": 0.5}
    assert values == pytest.approx(expected)


@pytest.mark.parametrize("known_total", [False, True])
def test_noised_accuracy_states_the_spread_that_the_noise_makes(known_total: bool) -> None:
    rng = np.random.default_rng(0)
    exact = np.diag(np.full(10, 36.0)) + np.eye(10, k=1) * 4
    found = []
    for _ in range(2000):
        cells = np.rint(exact + rng.normal(0, 0.8 * np.sqrt(5), exact.shape)).astype(np.int64)
        total = (exact.sum() + rng.normal(0, 3), 9.0) if known_total else None
        found.append(NoisedCounts(cells, 5).accuracy(0.8, total))
    accuracies, stated = np.array(found).T

    assert accuracies.mean() == pytest.approx(360 / 396, abs=4e-3)
    assert accuracies.std() == pytest.approx(stated.mean(), rel=0.1)
    assert stated.mean() == pytest.approx(0.016 if known_total else 0.043, rel=0.15)


def test_noised_accuracy_with_an_exact_total_is_that_of_the_trace_and_the_rest() -> None:
    pair = NoisedCounts(np.array([30, 20]))

    accuracy, spread = pair.accuracy(3.0, total=(40.0, 0.0))

    # Both counts are as uncertain, so each gives up half of the surplus.
    assert accuracy == pytest.approx(25 / 40)
    assert spread == pytest.approx(3 / np.sqrt(2) / 40)
    assert pair.accuracy(3.0, total=(40.0, 1e12)) == pytest.approx(pair.accuracy(3.0), rel=1e-6)
