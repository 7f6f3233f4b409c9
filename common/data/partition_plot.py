"""Plot of a partition, with classes as rows and clients as columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.plot_labels import thinned_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#22313f"


def draw_partition(file: Path, counts: np.ndarray, classes: Sequence[str], *, images_unused: int = 0) -> None:
    """Draw how many images of each class each client holds.

    The plot stays legible from one client to a thousand: counts are written where cells are large enough, and long axes
    show some of their labels only. `counts` has shape (classes, clients).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    num_clients = counts.shape[1]
    cell = max(0.42, 0.11 * (len(str(counts.max(initial=0))) + 1)) if num_clients <= 30 else 0.1
    size = (min(16.0, max(7.0, 3.5 + cell * num_clients)), min(14.0, max(3.5, 1.5 + 0.35 * len(classes))))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(counts, cmap="Greens", aspect="auto", vmin=0, interpolation="nearest")
    if num_clients <= 30 and len(classes) <= 40:
        _write_counts(axes, counts)
    _name_axes(axes, classes, num_clients)
    axes.set_title(_title(counts, images_unused))
    figure.colorbar(image, ax=axes, label="images", ticks=MaxNLocator(integer=True))
    figure.savefig(file, dpi=110)


def _title(counts: np.ndarray, images_unused: int) -> str:
    sizes = counts.sum(axis=0)
    clients = f"{len(sizes):,} client{'s' if len(sizes) > 1 else ''} of {sizes.min():,} to {sizes.max():,}"
    unused = f"; {images_unused:,} images unused" if images_unused else ""
    return f"{int(sizes.sum()):,} images, held-out ones included{unused}\n{clients}"


def _write_counts(axes: "Axes", counts: np.ndarray) -> None:
    for (row, column), amount in np.ndenumerate(counts):
        if amount:
            colour = "white" if amount > 0.6 * counts.max() else _INK
            axes.text(column, row, str(amount), ha="center", va="center", fontsize=8, color=colour)


def _name_axes(axes: "Axes", classes: Sequence[str], num_clients: int) -> None:
    from matplotlib.ticker import MaxNLocator

    places, labels, remark = thinned_labels(classes)
    axes.set_yticks(places, labels)
    axes.set(xlabel="client", ylabel=f"class{remark}")
    if num_clients <= 30:
        axes.set_xticks(range(num_clients))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
