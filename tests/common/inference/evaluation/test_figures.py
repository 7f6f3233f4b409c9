"""Figures equal scikit-learn's on pooled predictions, and those of resamples equal them at equal weights.

Drives `common.inference.evaluation.scored_images`, `common.inference.evaluation.intervals`.
"""

import numpy as np
import pytest
from sklearn import metrics

from common.inference.evaluation.figures import BY_CLASS, OVERALL, figures, reliability
from common.inference.evaluation.intervals import weighted_figures
from common.inference.evaluation.scored_images import ScoredImages


def scored_of(seed: int, images: int = 200, classes: int = 4, *, coarse: bool = False) -> ScoredImages:
    """Scores that are right about half of the time; coarse ones are often equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(0, 1.5, (images, classes)) + 1.5 * np.eye(classes)[labels]
    return ScoredImages(labels, np.round(logits) if coarse else logits, np.arange(images))


def one_class_missing() -> ScoredImages:
    whole = scored_of(3)
    return whole.part(whole.labels != 2)


def never_predicted() -> ScoredImages:
    whole = scored_of(4)
    logits = whole.logits.copy()
    logits[:, 1] = -50.0
    return ScoredImages(whole.labels, logits, whole.units)


CASES = {
    "four classes": scored_of(0),
    "two classes": scored_of(1, classes=2),
    "equal scores": scored_of(2, coarse=True),
    "a class without images": one_class_missing(),
    "a class that is never predicted": never_predicted(),
    "all right": ScoredImages(np.arange(4) % 2, 9.0 * np.eye(2)[np.arange(4) % 2], np.arange(4)),
    "one image": ScoredImages(np.array([1]), np.array([[0.0, 1.0]]), np.array([0])),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_figures_equal_scikit_learns(name: str) -> None:
    scored = CASES[name]
    labels, predicted, names = scored.labels, scored.logits.argmax(axis=1), np.arange(scored.num_classes)

    found = figures(scored, scored.support > 0)

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=names, zero_division=np.nan
    )
    for key, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_array_equal(found[key], expected)
    np.testing.assert_array_equal(scored.support, support)
    np.testing.assert_array_equal(scored.confusion, metrics.confusion_matrix(labels, predicted, labels=names))
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found["mcc"] == metrics.matthews_corrcoef(labels, predicted)
    np.testing.assert_array_equal(found["kappa"], metrics.cohen_kappa_score(labels, predicted))
    for at in names[(support > 0) & (support < len(labels))]:
        shares = np.round(np.log(scored.probabilities[:, at]), 9)
        assert found["auroc"][at] == pytest.approx(metrics.roc_auc_score(labels == at, shares), abs=1e-12)
        assert found["pr_auc"][at] == pytest.approx(metrics.average_precision_score(labels == at, shares), abs=1e-12)
    if name in ("four classes", "equal scores"):
        every = metrics.roc_auc_score(labels, np.round(scored.probabilities, 12), multi_class="ovr", average="macro")
        assert found["macro_auroc"] == pytest.approx(every, abs=1e-12)
        assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    truth = np.eye(scored.num_classes)[labels]
    assert found["brier"] == pytest.approx(((scored.probabilities - truth) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("name", CASES)
def test_figures_of_a_resample_without_change_are_the_figures(name: str) -> None:
    scored = CASES[name]
    counted = scored.support > 0

    found = weighted_figures(scored, np.ones((2, len(scored)), np.float32), counted)

    expected = figures(scored, counted)
    assert found.keys() == expected.keys() == OVERALL.keys() | BY_CLASS.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key][1], value, rtol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["four classes", "equal scores"])
def test_figures_of_a_resample_are_those_of_its_images(name: str) -> None:
    scored = CASES[name]
    weights = np.random.default_rng(0).poisson(1.0, (3, len(scored)))
    counted = np.ones(scored.num_classes, dtype=bool)

    found = weighted_figures(scored, weights.astype(np.float32), counted)

    for row, drawn in enumerate(weights):
        expected = figures(scored.part(np.repeat(np.arange(len(scored)), drawn)), counted)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key][row], value, rtol=1e-6, err_msg=key)


def test_averages_over_classes_leave_out_those_that_are_not_counted() -> None:
    scored = CASES["four classes"]

    found = figures(scored, np.array([True, False, True, True]))

    for mean, part in (("balanced_accuracy", "recall"), ("macro_f1", "f1"), ("macro_auroc", "auroc")):
        assert found[mean] == pytest.approx(found[part][[0, 2, 3]].mean())
    assert np.isnan(figures(scored, np.zeros(4, dtype=bool))["macro_f1"])


def test_calibration_error_and_reliability_of_a_hand_made_case() -> None:
    """Four images at 0.9, of which three are right, and four at 0.6, of which one is."""
    shares = np.array([0.9] * 4 + [0.6] * 4)
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    scored = ScoredImages(labels, np.log(np.stack([shares, 1 - shares], axis=1)), np.arange(8))

    assert figures(scored, np.ones(2, dtype=bool))["ece"] == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    filled = [row for row in reliability(scored) if row["images"]]
    assert [(row["images"], row["right"]) for row in filled] == [(4, 1), (4, 3)]
    assert [row["confidence"] for row in filled] == pytest.approx([0.6, 0.9])


def test_log_odds_rank_images_whose_probabilities_have_rounded_to_one() -> None:
    logits = np.array([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, 100.0, 0.0]])
    scored = ScoredImages(np.array([1, 0, 1]), logits, np.arange(3))

    assert scored.probabilities[0, 0] == scored.probabilities[1, 0] == 1.0
    assert scored.log_odds[0, 0] < scored.log_odds[1, 0]
    np.testing.assert_allclose(scored.log_odds[:, 0], [100 - np.log(2), 200 - np.log(2), -100.0])
    assert figures(scored, np.ones(3, dtype=bool))["auroc"][0] == 1.0
