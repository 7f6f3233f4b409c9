"""Figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.metrics import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _ACCENT, _SECOND = "#22313f", "#2a6f4e", "#b4552d"


def draw_confusion(file: Path, confusion: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix with each row as shares of its true class.

    Args:
        file: PNG file to write.
        confusion: Counts, shape (classes, classes), true class by row.
        classes: Class names.
        title: Title of the figure.
    """
    size = max(5.0, 1.5 + 0.5 * len(classes))
    figure, axes = _figure(size + 1, size)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), amount in np.ndenumerate(confusion):
            if amount:
                colour = "white" if shares[row, column] > 0.6 else _INK
                axes.text(column, row, str(amount), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    _save(figure, file)


def draw_curves(file: Path, rounds: Sequence[dict[str, Any]], title: str) -> None:
    """Draw accuracy, macro F1 and loss over rounds.

    Where clients have models of their own, their accuracy is drawn too. Noised accuracy is drawn with its interval.

    Args:
        file: PNG file to write.
        rounds: Lines of `rounds.jsonl`. Those without an evaluation are skipped.
        title: Title of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in rounds if "accuracy" in line]
    noised = [line["private"] for line in rounds if line.get("private", {}).get("accuracy_stddev") is not None]
    figure, axes = _figure(8, 4.5)
    axes.set(xlabel="model after round", ylabel="accuracy, macro F1", title=title, ylim=(0, 1))
    if noised:
        middle = np.array([line["accuracy"] for line in noised])
        ends = np.array([interval(line["accuracy"], line["accuracy_stddev"]) for line in noised]).T
        bars = np.abs(ends - middle)
        x = [line["evaluated_model"] for line in noised]
        axes.errorbar(x, middle, bars, color="silver", fmt=".", lw=1, label="accuracy, private")
    if not lines and noised:
        axes.legend(loc="center right")
        _save(figure, file)
        return
    if not lines:
        axes.text(0.5, 0.5, "nothing was evaluated", ha="center", transform=axes.transAxes)
        _save(figure, file)
        return
    x = [line["evaluated_model"] for line in lines]
    axes.plot(x, [line["accuracy"] for line in lines], color=_ACCENT, marker="o", ms=3, label="accuracy")
    axes.plot(x, [line["macro_f1"] for line in lines], color=_SECOND, ls="--", label="macro F1")
    if any("personal_accuracy" in line for line in lines):
        own = [line.get("personal_accuracy", np.nan) for line in lines]
        axes.plot(x, own, color=_INK, marker="s", ms=3, label="accuracy of clients' own models")
    losses = axes.twinx()
    losses.plot(
        x,
        [np.nan if line["loss"] is None else line["loss"] for line in lines],
        color="grey",
        lw=1,
        label="loss (right)",
    )
    losses.set_ylabel("cross-entropy, nats an image")
    losses.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = axes.get_legend_handles_labels()[0] + losses.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="center right")
    _save(figure, file)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: "Figure", file: Path) -> None:
    figure.savefig(file, dpi=110)
