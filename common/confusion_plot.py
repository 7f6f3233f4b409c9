"""Confusion matrix as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#22313f"
_MAX_NUMBERS = 20


def fill_confusion(axes: "Axes", confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix into axes, each row as shares of its true class.

    Args:
        axes: Where to draw.
        confusion: Counts (classes, classes), true class by row.
        classes: Class names.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if len(classes) <= _MAX_NUMBERS:
        for (row, column), amount in np.ndenumerate(confusion):
            if amount:
                colour = "white" if shares[row, column] > 0.6 else _INK
                axes.text(column, row, str(amount), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
