"""Figures of a model by scikit-learn."""

import warnings
from collections.abc import Mapping

import numpy as np

from common.inference.evaluation.scored_images import NUM_BINS, ScoredImages

# Figure -> its name for people. The first have one value, the others one for each class.
OVERALL = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "macro_pr_auc": "macro PR-AUC",
    "mcc": "Matthews correlation",
    "kappa": "Cohen's kappa",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}
BY_CLASS = {"precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC", "pr_auc": "PR-AUC"}
# Overall figure -> the figure of each class whose mean it is.
MEAN_OF = {"balanced_accuracy": "recall", "macro_f1": "f1", "macro_auroc": "auroc", "macro_pr_auc": "pr_auc"}
Figures = Mapping[str, np.ndarray]


def figures(scored: ScoredImages, counted: np.ndarray) -> Figures:
    """Return every figure, one number for `OVERALL` and (classes,) for `BY_CLASS`.

    A figure that the images do not determine is NaN, such as the recall of a class without images. Averages over
    classes are over those of `counted`, (classes,) bool. AUROC and PR-AUC are of one class against the rest, by the
    log-odds. The calibration error is of the largest probability in 15 bins of equal width. The Brier score is the sum
    over classes.
    """
    # Importing scikit-learn takes a second, which who needs an interval only does without.
    from sklearn import metrics

    labels, predicted, names = scored.labels, scored.predicted, np.arange(scored.num_classes)
    with warnings.catch_warnings():
        # Classes without images are told by NaN and their support.
        warnings.simplefilter("ignore")
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            labels, predicted, labels=names, zero_division=np.nan
        )
        auroc, pr_auc = np.full((2, len(names)), np.nan)
        for name in names[(scored.support > 0) & (scored.support < len(labels))]:
            auroc[name] = metrics.roc_auc_score(labels == name, scored.log_odds[:, name])
            pr_auc[name] = metrics.average_precision_score(labels == name, scored.log_odds[:, name])
        found = {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc, "pr_auc": pr_auc}
        found |= {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
            "kappa": metrics.cohen_kappa_score(labels, predicted),
            "ece": _calibration_error(scored),
            "brier": metrics.brier_score_loss(labels, scored.probabilities, labels=names, scale_by_half=False),
        }
    return {key: np.asarray(value) for key, value in (found | class_means(found, counted)).items()}


def class_means(found: Figures, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Return the averages over classes of (..., classes) figures, NaN over no class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {key: np.nanmean(np.asarray(found[part])[..., counted], axis=-1) for key, part in MEAN_OF.items()}


def reliability(scored: ScoredImages) -> list[dict[str, float | int | None]]:
    """Return the bins of a reliability diagram, empty ones too."""
    right = scored.labels == scored.predicted
    rows: list[dict[str, float | int | None]] = []
    for number in range(NUM_BINS):
        inside = scored.bins == number
        images = int(inside.sum())
        row: dict[str, float | int | None] = {
            "from": number / NUM_BINS,
            "to": (number + 1) / NUM_BINS,
            "images": images,
            "right": int(right[inside].sum()),
            "confidence": float(scored.confidence[inside].mean()) if images else None,
        }
        rows.append(row)
    return rows


def _calibration_error(scored: ScoredImages) -> float:
    # Neither library of metrics that is installed has it. Source: Guo et al. 2017, arXiv:1706.04599.
    gaps = (scored.labels == scored.predicted) - scored.confidence
    return float(np.abs(np.bincount(scored.bins, weights=gaps, minlength=NUM_BINS)).sum() / len(scored))
