"""Intervals of 95 % by Wilson's score and by the bootstrap over units."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.inference.evaluation.figures import Figures, class_means
from common.inference.evaluation.scored_images import NUM_BINS, ScoredImages
from common.metrics import wilson_interval
from common.randomness import public_stream

_TAIL = 0.025
# Values in memory at once for each array of a block of resamples.
_BLOCK = 4_000_000


class Interval(NamedTuple):
    """Ends of an interval, both NaN where there is none."""

    low: float
    high: float


def wilson(hits: int, count: int) -> Interval:
    """Return Wilson's interval of a share.

    >>> tuple(round(end, 4) for end in wilson(8, 10))
    (0.4902, 0.9433)
    """
    low, high = wilson_interval(np.array([hits]), np.array([count]))
    return Interval(float(low[0]), float(high[0]))


def resampled_weights(units: np.ndarray, resamples: int, *purpose: str) -> Iterator[np.ndarray]:
    """Yield the number of times that each image is drawn, (block, n) float32.

    Units are drawn with replacement, with all their images. The draws are the same each time.
    """
    rng = public_stream(0, "bootstrap", *purpose)
    _, unit_of = np.unique(units, return_inverse=True)
    number = int(unit_of.max(initial=-1)) + 1
    block = max(1, _BLOCK // max(1, len(units)))
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        yield counts[:, unit_of].astype(np.float32)


def bootstrap(scored: ScoredImages, counted: np.ndarray, resamples: int) -> dict[str, np.ndarray]:
    """Return the ends (2,) or (2, classes) of each figure's interval.

    Source: Efron 1979, percentiles; the calibration error is biased upwards, which `2 * figure - percentile` takes
    back (Efron and Tibshirani 1993, section 13.4).
    """
    blocks = [weighted_figures(scored, weights, counted) for weights in resampled_weights(scored.units, resamples)]
    ends = {}
    for key in blocks[0]:
        values = np.concatenate([block[key] for block in blocks])
        ends[key] = _percentiles(values)
    whole = weighted_figures(scored, np.ones((1, len(scored)), np.float32), counted)["ece"][0]
    ends["ece"] = np.maximum(0.0, 2 * whole - ends["ece"][::-1])
    return ends


def _percentiles(values: np.ndarray) -> np.ndarray:
    """Return the percentiles of the first axis, NaN where most resamples have no value."""
    known = np.isfinite(values).mean(axis=0) >= 0.5
    filled = np.where(known, values, 0.0)
    return np.where(known, np.nanquantile(filled, (_TAIL, 1 - _TAIL), axis=0), np.nan)


def weighted_figures(scored: ScoredImages, weights: np.ndarray, counted: np.ndarray) -> Figures:
    """Return the figures of resamples, (block,) or (block, classes) each.

    With weights of 1 they are those of `common.inference.evaluation.figures`. All resamples are computed at once,
    which scikit-learn cannot do.
    """
    found = _of_confusion(_confusions(scored, weights)) | _of_ranks(scored, weights) | _of_confidence(scored, weights)
    return found | class_means(found, counted)


def _confusions(scored: ScoredImages, weights: np.ndarray) -> np.ndarray:
    """Return (block, classes, classes) float64 counts."""
    number = scored.num_classes
    cells = scored.labels * number + scored.predicted
    counts = [np.bincount(cells, weights=row, minlength=number**2) for row in weights]
    return np.stack(counts).reshape(-1, number, number)


def _of_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    actual, predicted, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    right = hits.sum(axis=1)
    # Source: Gorodkin 2004 for the Matthews correlation of several classes, Cohen 1960 for kappa.
    by_chance = (actual * predicted).sum(axis=1)
    spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1))
    covariance = right * total - by_chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "precision": hits / predicted,
            "recall": hits / actual,
            "f1": 2 * hits / (actual + predicted),
            "accuracy": right / total,
            "mcc": np.where(spread > 0, covariance / np.sqrt(spread), 0.0),
            "kappa": covariance / (total**2 - by_chance),
        }


def _of_ranks(scored: ScoredImages, weights: np.ndarray) -> dict[str, np.ndarray]:
    areas = [_areas(scored.labels == name, scored.log_odds[:, name], weights) for name in range(scored.num_classes)]
    auroc, pr_auc = (np.stack(columns, axis=1) for columns in zip(*areas, strict=True))
    return {"auroc": auroc, "pr_auc": pr_auc}


def _areas(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas under the ROC and the precision-recall curve of each resample."""
    order = np.argsort(-scores, kind="stable")
    falling, drawn = scores[order], weights[:, order].astype(np.float64)
    # Images of equal score pass a threshold together.
    starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
    hits = np.add.reduceat(drawn * positive[order], starts, axis=1)
    alarms = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    hits_so_far, alarms_so_far = hits.cumsum(axis=1), alarms.cumsum(axis=1)
    all_hits, all_alarms = hits_so_far[:, -1], alarms_so_far[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        above = (alarms * (hits_so_far - hits / 2)).sum(axis=1) / (all_hits * all_alarms)
        precision = hits_so_far / (hits_so_far + alarms_so_far)
        recalled = (np.where(hits > 0, precision, 0.0) * hits).sum(axis=1) / all_hits
    return above, np.where(all_alarms > 0, recalled, np.nan)


def _of_confidence(scored: ScoredImages, weights: np.ndarray) -> dict[str, np.ndarray]:
    total = weights.sum(axis=1, dtype=np.float64)
    gaps = (scored.labels == scored.predicted) - scored.confidence
    in_bin = np.eye(NUM_BINS)[scored.bins] * gaps[:, None]
    truth = np.eye(scored.num_classes)[scored.labels]
    errors = ((scored.probabilities - truth) ** 2).sum(axis=1)
    return {"ece": np.abs(weights @ in_bin).sum(axis=1) / total, "brier": weights @ errors / total}
