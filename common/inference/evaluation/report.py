"""Report of an evaluation, as plain values for JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.inference.evaluation.figures import BY_CLASS, OVERALL, figures, reliability
from common.inference.evaluation.intervals import Interval, bootstrap, resampled_weights, wilson
from common.inference.evaluation.scored_images import ScoredImages

Report = dict[str, Any]


def evaluate(scored: ScoredImages, classes: Sequence[str], *, least_support: int, resamples: int) -> Report:
    """Return every figure of a model on labelled images with its interval.

    Shares of independent images have Wilson's interval. All other figures, and shares where a unit has several images,
    have the percentiles of a bootstrap over units. A figure that the images do not determine is None.

    Args:
        scored: At least one image.
        classes: Class names.
        least_support: Classes with fewer images are left out of averages over classes.
        resamples: Resamples of the bootstrap.
    """
    counted = scored.support >= max(1, least_support)
    found, ends = figures(scored, counted), bootstrap(scored, counted, resamples)
    shares = {} if scored.grouped else _wilson_intervals(scored)

    def figure(key: str, *at: int) -> Report:
        low, high = shares[key, *at] if (key, *at) in shares else (float(ends[key][(end, *at)]) for end in (0, 1))
        return {"value": _plain(found[key][at]), "low": _plain(low), "high": _plain(high)}

    return {
        "images": len(scored),
        "units": len(np.unique(scored.units)),
        "intervals": _method(scored, resamples),
        "least_support": least_support,
        "left_out": [name for name, is_counted in zip(classes, counted, strict=True) if not is_counted],
        "figures": {key: figure(key) for key in OVERALL},
        "classes": [
            {"class": name, "support": int(scored.support[at])} | {key: figure(key, at) for key in BY_CLASS}
            for at, name in enumerate(classes)
        ],
        "confusion": scored.confusion.tolist(),
        "reliability": reliability(scored),
    }


def _method(scored: ScoredImages, resamples: int) -> str:
    if scored.grouped:
        return f"95 %, bootstrap over units, {resamples} resamples"
    return f"95 %: Wilson for accuracy, precision and recall, else bootstrap, {resamples} resamples"


def _wilson_intervals(scored: ScoredImages) -> dict[tuple[Any, ...], Interval]:
    hits, predicted = np.diag(scored.confusion), scored.confusion.sum(axis=0)
    intervals: dict[tuple[Any, ...], Interval] = {("accuracy",): wilson(int(hits.sum()), len(scored))}
    for at in range(scored.num_classes):
        intervals["recall", at] = wilson(int(hits[at]), int(scored.support[at]))
        intervals["precision", at] = wilson(int(hits[at]), int(predicted[at]))
    return intervals


def _plain(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return float(value) if np.isfinite(value) else None


def full_report(
    models: Sequence[ScoredImages],
    classes: Sequence[str],
    *,
    groups: Sequence[str],
    names: tuple[str, str],
    least_support: int,
    resamples: int,
) -> Report:
    """Return the report of a model, its groups and a comparison.

    Args:
        models: The model's scores and, if wanted, those of a baseline on the same images.
        classes: Class names.
        groups: Group of each image, empty without groups.
        names: What groups are by, and the baseline's name.
        least_support: As in `evaluate`.
        resamples: As in `evaluate`.
    """
    scored = models[0]
    report = evaluate(scored, classes, least_support=least_support, resamples=resamples)
    if groups:
        named = np.array(groups)
        report |= {"by": names[0], "groups": []}
        for name in sorted(set(groups)):
            own = scored.part(named == name)
            own_report = evaluate(own, classes, least_support=least_support, resamples=resamples)
            report["groups"].append({"group": name} | own_report)
    if len(models) > 1:
        report["baseline"] = {"model": names[1]} | compare(scored, models[1], resamples=resamples)
    return report


def compare(scored: ScoredImages, baseline: ScoredImages, *, resamples: int) -> Report:
    """Compare two models on the same images by McNemar's exact test.

    The difference in accuracy has the interval of a paired bootstrap over units. The test takes images for
    independent.

    Source: McNemar 1947; exact form by `scipy.stats.binomtest`.
    """
    from scipy.stats import binomtest

    right, before = (model.labels == model.predicted for model in (scored, baseline))
    better, worse = int((right & ~before).sum()), int((~right & before).sum())
    difference = right.astype(np.float64) - before
    drawn = [
        weights @ difference / weights.sum(axis=1)
        for weights in resampled_weights(scored.units, resamples, "comparison")
    ]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return {
        "accuracy": float(before.mean()),
        "difference": {"value": float(difference.mean()), "low": float(low), "high": float(high)},
        "right_here_only": better,
        "right_in_baseline_only": worse,
        "p_value": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        "images_are_independent": not scored.grouped,
    }
