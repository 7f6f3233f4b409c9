"""Picture of an evaluation with confusion matrix and reliability diagram."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.confusion_plot import draw_matrix
from common.inference.evaluation.intervals import wilson
from common.inference.evaluation.scored_images import NUM_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _GREY = "#2a6f4e", "#9aa5ad"
# Inches. Half an inch a class would take gigabytes at 300 classes.
_LEAST_SIDE, _MOST_SIDE = 5.0, 16.0


def draw_evaluation(report: Mapping[str, Any], title: str) -> bytes:
    """Return a PNG file with the confusion matrix beside the reliability diagram."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row["class"] for row in report["classes"]]
    side = min(_MOST_SIDE, max(_LEAST_SIDE, 1.5 + 0.5 * len(names)))
    figure = Figure(figsize=(side + 6.5, side), layout="constrained")
    FigureCanvasAgg(figure)
    matrix, diagram = figure.subplots(1, 2, width_ratios=(side + 1, 5.5))
    draw_matrix(matrix, np.array(report["confusion"]), names)
    _draw_reliability(diagram, report["reliability"], report["figures"]["ece"]["value"])
    # A dollar sign would start a formula.
    figure.suptitle(title.replace("$", r"\$"))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _draw_reliability(axes: "Axes", bins: Sequence[Mapping[str, Any]], error: float) -> None:
    filled = [row for row in bins if row["images"]]
    middle = np.array([row["confidence"] for row in filled])
    shares = np.array([row["right"] / row["images"] for row in filled])
    ends = np.array([wilson(row["right"], row["images"]) for row in filled]).T
    axes.plot([0, 1], [0, 1], color=_GREY, ls="--", lw=1, label="perfect calibration")
    axes.errorbar(middle, shares, np.abs(ends - shares), fmt="o", ms=5, color=_GREEN, lw=1, label="share right, 95 %")
    axes.set(xlabel="probability of the predicted class", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.set(ylabel="share that is right", title=f"reliability, calibration error {error:.3f}")
    axes.grid(alpha=0.3)
    amounts = axes.twinx()
    places = [(row["from"] + row["to"]) / 2 for row in bins]
    amounts.bar(places, [row["images"] for row in bins], width=0.9 / NUM_BINS, color=_GREY, alpha=0.3)
    amounts.set_ylabel("images (bars)")
    # The bars stay in the lower third, below most of the points.
    amounts.set_ylim(0, 3 * max(row["images"] for row in bins))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
