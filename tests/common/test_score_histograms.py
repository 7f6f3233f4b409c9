"""AUROC and calibration from histograms: against scikit-learn, by hand, and under noise."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from common.errors import FederationError
from common.score_histograms import (
    NUM_CONFIDENCE_BINS,
    NUM_SCORE_BINS,
    SCORE_EDGES,
    ScoreHistograms,
    calibration_error,
    class_auroc,
    histogram_figures,
    score_histograms,
)

CLASSES = ("a", "b", "c")


def scored(units: int = 600, *, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that is fairly good, and the true labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), units)
    logits = 2 * rng.standard_normal((units, len(CLASSES)))
    logits[np.arange(units), labels] += 2
    return logits.astype(np.float32), labels


def probabilities(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def test_auroc_is_that_of_scikit_learn_on_binned_scores_and_near_the_exact_one() -> None:
    logits, labels = scored()
    scores = probabilities(logits)

    found = histogram_figures(score_histograms(logits, labels), CLASSES)

    for name, row in enumerate(found["classes"].values()):
        binned = np.digitize(scores[:, name], SCORE_EDGES)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels == name, binned), abs=1e-12)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels == name, scores[:, name]), abs=0.01)
        assert row["units"] == (labels == name).sum()
    assert found["macro_auroc"] == pytest.approx(np.mean([row["auroc"] for row in found["classes"].values()]))
    assert (found["macro_auroc_stddev"], found["ece_of_noise"]) == (0.0, 0.0)


def test_calibration_error_is_worked_out_by_hand() -> None:
    confidence = np.zeros((2, NUM_CONFIDENCE_BINS), dtype=np.int64)
    confidence[:, 7] = 4, 6  # ten units at 0.5 of which six are right
    confidence[:, 14] = 5, 5  # ten at 29/30 of which half are right

    ece, of_noise = calibration_error(confidence, 0.0)

    assert ece == pytest.approx(0.5 * 0.1 + 0.5 * (29 / 30 - 0.5))
    assert of_noise == 0.0


def test_figures_are_of_all_clients_together() -> None:
    logits, labels = scored()
    parts = [score_histograms(logits[rows], labels[rows]) for rows in (slice(0, 50), slice(50, 51), slice(51, None))]

    summed = parts[0] + parts[1] + parts[2]

    whole = score_histograms(logits, labels)
    assert np.array_equal(summed.scores, whole.scores)
    assert np.array_equal(summed.confidence, whole.confidence)
    assert summed.num_clients == 3
    with pytest.raises(FederationError, match="different numbers of classes"):
        _ = whole + score_histograms(np.zeros((1, 2)), np.zeros(1, np.int64))


@pytest.mark.parametrize(
    "row", [[0.0, 0.0, 0.0], [1e30, -1e30, 0.0], [np.nan, 1.0, 2.0], [np.inf, np.inf, 0.0], [-np.inf] * 3, [-1e3, 0, 9]]
)
def test_unit_votes_once_in_each_histogram_whatever_its_scores(row: list[float]) -> None:
    logits, labels = scored(40)
    before = score_histograms(logits, labels)

    after = score_histograms(np.vstack([[row], logits]).astype(np.float32), np.concatenate([[1], labels]))

    moved = after.scores - before.scores
    assert moved.min() == 0
    assert moved.sum(axis=(1, 2)).tolist() == [1, 1, 1]
    assert moved[:, 1].sum(axis=1).tolist() == [0, 1, 0], "it is of class 1"
    of_confidence = after.confidence - before.confidence
    assert (of_confidence.min(), of_confidence.sum()) == (0, 1)


def test_nobody_is_counted_without_units() -> None:
    nobody = score_histograms(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))

    found = histogram_figures(nobody, CLASSES)

    assert nobody.scores.shape == (3, 2, NUM_SCORE_BINS)
    assert (found["macro_auroc"], found["macro_auroc_stddev"], found["ece"]) == (None, None, None)


def test_stated_deviations_are_those_of_repeated_noise() -> None:
    noise, clients, repeats = 3.0, 4, 400
    whole, rng = score_histograms(*scored(6000)), np.random.default_rng(1)
    exact = histogram_figures(whole, CLASSES)
    found = []
    for _ in range(repeats):
        drawn = [
            np.rint(rng.normal(0, noise * np.sqrt(clients), part.shape)).astype(np.int64)
            for part in (whole.scores, whole.confidence)
        ]
        noised = ScoreHistograms(whole.scores + drawn[0], whole.confidence + drawn[1], clients)
        found.append(histogram_figures(noised, CLASSES, scores_noise=noise, confidence_noise=noise))

    values = np.array([each["macro_auroc"] for each in found])
    stated = np.mean([each["macro_auroc_stddev"] for each in found])
    # A standard deviation of 400 draws is known to 3.5 %.
    assert values.std() == pytest.approx(stated, rel=0.15)
    assert abs(values.mean() - exact["macro_auroc"]) < 5 * stated / np.sqrt(repeats)


def test_calibration_error_of_noise_is_what_a_calibrated_model_shows() -> None:
    rng, noise = np.random.default_rng(2), 5.0
    middles = (np.arange(NUM_CONFIDENCE_BINS) + 0.5) / NUM_CONFIDENCE_BINS
    calibrated = np.rint(6000 * np.stack([1 - middles, middles]))

    drawn = [calibration_error(calibrated + rng.normal(0, noise, calibrated.shape), noise) for _ in range(300)]

    seen, stated = np.mean([ece for ece, _ in drawn]), np.mean([of_noise for _, of_noise in drawn])
    assert seen == pytest.approx(stated, rel=0.05)


def test_class_that_noise_hides_has_no_auroc() -> None:
    counts = np.ones((2, NUM_SCORE_BINS), dtype=np.int64)

    assert class_auroc(counts, 0.0) == pytest.approx((0.5, 0.0))
    assert class_auroc(counts, 5.0) is None
