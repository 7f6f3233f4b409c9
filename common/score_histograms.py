"""Histograms of scores and confidence, from which AUROC and calibration follow.

Histograms are added over clients before figures are derived. Bin edges are public constants, and each unit has one vote
in each histogram, whatever its scores are.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import FederationError

# Probabilities of a class whose log-odds are the whole numbers from -9 to 9. Scores crowd near 0 and 1, where
# bins of equal width would hold nearly all of them.
SCORE_EDGES = tuple(1.0 / (1.0 + math.exp(-log_odds)) for log_odds in range(-9, 10))
NUM_SCORE_BINS = len(SCORE_EDGES) + 1
# Bins of equal width of the largest probability.
NUM_CONFIDENCE_BINS = 15
_CONFIDENCE_EDGES = tuple(number / NUM_CONFIDENCE_BINS for number in range(1, NUM_CONFIDENCE_BINS))
# A class whose units hardly exceed the noise of their sum says nothing about its AUROC.
_LEAST_TOTAL = 3.0


@dataclass(frozen=True)
class ScoreHistograms:
    """Votes of held-out units by their scores, exact or with noise in each count.

    The sum of two clients' histograms is that of all their units. In `scores`, (classes, 2, `NUM_SCORE_BINS`) int64,
    row 0 of a class holds units of other classes and row 1 its own, by the bin of the class's probability. In
    `confidence`, (2, `NUM_CONFIDENCE_BINS`) int64, row 0 holds wrong and row 1 right predictions, by the bin of the
    largest probability. Noise can make a count negative. Each count contains the noise of `num_clients` clients.
    """

    scores: np.ndarray
    confidence: np.ndarray
    num_clients: int = 1

    def __add__(self, other: "ScoreHistograms") -> "ScoreHistograms":
        if self.scores.shape != other.scores.shape:
            raise FederationError("histograms over different numbers of classes cannot be added")
        return ScoreHistograms(
            self.scores + other.scores, self.confidence + other.confidence, self.num_clients + other.num_clients
        )


def score_histograms(logits: np.ndarray, labels: np.ndarray) -> ScoreHistograms:
    """Count units by the bins of their probabilities.

    `logits` are (units, classes), `labels` (units,). Guarantee: a unit adds 1 to exactly one count of each class's
    histogram and to one count of the confidence histogram, also if its logits are not finite. So it changes `scores`
    by sqrt(classes) and `confidence` by 1 in L2 norm, and no other unit's votes.
    """
    num_classes = logits.shape[1]
    scores = np.zeros((num_classes, 2, NUM_SCORE_BINS), dtype=np.int64)
    confidence = np.zeros((2, NUM_CONFIDENCE_BINS), dtype=np.int64)
    predicted = logits.argmax(axis=1) if len(labels) else labels
    for row, label, top in zip(logits, labels.tolist(), predicted.tolist(), strict=True):
        # One row at a time in plain Python: rounding in a vectorised `exp` could depend on a row's place, and so move
        # another unit into another bin.
        probabilities = _softmax(row.tolist())
        for name, probability in enumerate(probabilities):
            scores[name, int(name == label), bisect_right(SCORE_EDGES, probability)] += 1
        confidence[int(top == label), bisect_right(_CONFIDENCE_EDGES, probabilities[top])] += 1
    return ScoreHistograms(scores, confidence)


def _softmax(row: Sequence[float]) -> list[float]:
    largest = max(row)
    grown = [math.exp(value - largest) for value in row]
    total = math.fsum(grown)
    return [value / total for value in grown]


def histogram_figures(
    histograms: ScoreHistograms, classes: Sequence[str], *, scores_noise: float = 0.0, confidence_noise: float = 0.0
) -> dict[str, Any]:
    """Return AUROC and calibration error, at no cost in privacy.

    AUROC is given for each class and as their mean, with the standard deviation that noise alone gives it.
    `ece_of_noise` is the calibration error that noise alone would show of a perfectly calibrated model. A figure that
    the counts do not determine is None. The noises are those of each client in one count, 0 for exact counts.
    """
    spread = math.sqrt(histograms.num_clients)
    found = [class_auroc(counts, scores_noise * spread) for counts in histograms.scores]
    known = [pair for pair in found if pair is not None]
    macro = sum(value for value, _ in known) / len(known) if known else None
    ece, of_noise = calibration_error(histograms.confidence, confidence_noise * spread)
    return {
        "macro_auroc": macro,
        "macro_auroc_stddev": math.sqrt(sum(stddev**2 for _, stddev in known)) / len(known) if known else None,
        "ece": ece,
        "ece_of_noise": of_noise,
        "classes": {
            name: {
                "auroc": None if pair is None else pair[0],
                "auroc_stddev": None if pair is None else pair[1],
                "units": int(counts[1].sum()),
            }
            for name, pair, counts in zip(classes, found, histograms.scores, strict=True)
        },
        "confidence": histograms.confidence.tolist(),
        "clients": histograms.num_clients,
    }


def class_auroc(counts: np.ndarray, noise_stddev: float) -> tuple[float, float] | None:
    """Return one class's AUROC and its standard deviation by the noise.

    `counts` are (2, bins), other classes' units and its own. Units of one bin count as tied. The result is None where
    one of the two sums is not above three standard deviations of its noise.

    Source: the Mann-Whitney statistic; the deviation by the delta method.
    """
    others, own = counts.astype(np.float64)
    least = _LEAST_TOTAL * noise_stddev * math.sqrt(counts.shape[1])
    if not min(own.sum(), others.sum()) > least:
        return None
    # Chance that a unit of the other kind has a lower score, by the bin, ties by half.
    others_below = (np.cumsum(others) - others / 2) / others.sum()
    own_above = (own.sum() - np.cumsum(own) + own / 2) / own.sum()
    value = float((own * others_below).sum() / own.sum())
    derivatives = np.concatenate([(others_below - value) / own.sum(), (own_above - value) / others.sum()])
    return min(1.0, max(0.0, value)), float(noise_stddev * np.linalg.norm(derivatives))


def calibration_error(confidence: np.ndarray, noise_stddev: float) -> tuple[float | None, float | None]:
    """Return the expected calibration error and what noise alone would show.

    Counts are (2, bins). A unit's confidence is taken for the middle of its bin. Both are None without units.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    wrong, right = confidence.astype(np.float64)
    middles = (np.arange(confidence.shape[1]) + 0.5) / confidence.shape[1]
    total = confidence.sum()
    if not total > _LEAST_TOTAL * noise_stddev * math.sqrt(confidence.size):
        return None, None
    gaps = right - middles * (right + wrong)
    # A gap's noise is (1 - middle) times that of right and middle times that of wrong ones.
    of_noise = noise_stddev * math.sqrt(2 / math.pi) * float(np.hypot(1 - middles, middles).sum())
    return float(np.abs(gaps).sum() / total), of_noise / float(total)
