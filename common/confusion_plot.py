"""Confusion matrix drawn into a part of a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.plot_labels import thinned_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Classes whose counts fit into the cells.
MAX_COUNTED = 20


def draw_matrix(axes: "Axes", confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix with each row as shares of its true class.

    Few classes have their counts in the cells; of many every n-th has its name.

    Args:
        axes: Where to draw.
        confusion: Counts, shape (classes, classes), true class by row.
        classes: Class names.

    Returns:
        The shares, of the same shape, float64.
    """
    few = len(classes) <= MAX_COUNTED
    shares: np.ndarray = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if few:
        for (row, column), amount in np.ndenumerate(confusion):
            if amount:
                colour = "white" if shares[row, column] > 0.6 else "#22313f"
                axes.text(column, row, str(amount), ha="center", va="center", fontsize=8, color=colour)
    places, labels, remark = thinned_labels(classes)
    axes.set_xticks(places, labels, rotation=45 if few else 90, ha="right" if few else "center")
    axes.set_yticks(places, labels)
    axes.set(xlabel=f"predicted class{remark}", ylabel=f"true class{remark}")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return shares
