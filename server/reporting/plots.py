"""Figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.confusion_plot import MAX_COUNTED, draw_matrix
from common.metrics import interval
from common.plot_labels import short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _ACCENT, _SECOND, _PUBLIC = "#22313f", "#2a6f4e", "#b4552d", "#3b6fb6"
# Listed errors, and the size of a picture in inches.
_MAX_ERRORS, _MAX_INCHES, _ERROR_INCHES = 25, 12.0, 6.0


def draw_confusion(file: Path, confusion: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix with each row as shares of its true class.

    Few classes have their counts in the cells. Beside many classes the most frequent errors are listed by name.

    Args:
        file: PNG file to write.
        confusion: Counts, shape (classes, classes), true class by row.
        classes: Class names.
        title: Title of the figure.
    """
    errors = [] if len(classes) <= MAX_COUNTED else frequent_errors(confusion, _MAX_ERRORS)
    # Growing with the classes, the picture of 300 took 10 GB.
    size = min(_MAX_INCHES, max(5.0, 1.5 + 0.5 * len(classes)))
    figure = _empty_figure(size + 1 + (_ERROR_INCHES if errors else 0), size)
    widths = (size + 1, _ERROR_INCHES) if errors else (1,)
    axes, *beside = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    shares = draw_matrix(axes, confusion, classes)
    axes.set_title(title)
    for panel in beside:
        _draw_errors(panel, errors, shares, classes)
    _save(figure, file)


def frequent_errors(confusion: np.ndarray, max_errors: int) -> list[tuple[int, int, int]]:
    """Return the largest counts beside the diagonal, each with true and predicted class.

    >>> frequent_errors(np.array([[9, 2, 0], [3, 9, 0], [0, 0, 9]]), 5)
    [(1, 0, 3), (0, 1, 2)]
    """
    counts = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    largest = np.argsort(-counts, axis=None, kind="stable")[:max_errors]
    pairs = zip(*np.unravel_index(largest, counts.shape), strict=True)
    return [(int(row), int(column), int(counts[row, column])) for row, column in pairs if counts[row, column] > 0]


def _draw_errors(
    axes: "Axes", errors: Sequence[tuple[int, int, int]], shares: np.ndarray, classes: Sequence[str]
) -> None:
    places = range(len(errors))
    axes.barh(places, [amount for _, _, amount in errors], color=_SECOND, height=0.7)
    for place, (row, column, amount) in enumerate(errors):
        axes.text(amount, place, f" {amount:,} ({shares[row, column]:.0%})", va="center", fontsize=8)
    names = [f"{short_label(classes[row], 20)} > {short_label(classes[column], 20)}" for row, column, _ in errors]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(ylim=(_MAX_ERRORS - 0.5, -0.5), xlim=(0, 1.3 * errors[0][2]), xlabel="images (share of the true class)")
    axes.set_title("most frequent errors: true > predicted")
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(file: Path, rounds: Sequence[dict[str, Any]], title: str, *, exact_mark: str = "") -> None:
    """Draw accuracy, macro F1 and loss over rounds.

    Where clients have models of their own, their accuracy is drawn too. Noised accuracy is drawn with its interval,
    accuracy on the server's public images as a line of its own.

    Args:
        file: PNG file to write.
        rounds: Lines of `rounds.jsonl`. Those without an evaluation are skipped.
        title: Title of the figure.
        exact_mark: Words that follow the label of each exact figure.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in rounds if "accuracy" in line]
    public = [line["public_test"] for line in rounds if "public_test" in line]
    noised = [line["private"] for line in rounds if line.get("private", {}).get("accuracy_stddev") is not None]
    figure, axes = _figure(8, 4.5)
    axes.set(xlabel="model after round", ylabel="accuracy, macro F1", title=title, ylim=(0, 1))
    if noised:
        middle = np.array([line["accuracy"] for line in noised])
        ends = np.array([interval(line["accuracy"], line["accuracy_stddev"]) for line in noised]).T
        bars = np.abs(ends - middle)
        x = [line["evaluated_model"] for line in noised]
        axes.errorbar(x, middle, bars, color="silver", fmt=".", lw=1, label="accuracy, private")
    if public:
        x = [line["evaluated_model"] for line in public]
        axes.plot(
            x, [line["accuracy"] for line in public], color=_PUBLIC, marker="^", ms=3, label="accuracy, public test"
        )
    if not lines and (noised or public):
        axes.legend(loc="center right")
        _save(figure, file)
        return
    if not lines:
        axes.text(0.5, 0.5, "nothing was evaluated", ha="center", transform=axes.transAxes)
        _save(figure, file)
        return
    x = [line["evaluated_model"] for line in lines]
    axes.plot(x, [line["accuracy"] for line in lines], color=_ACCENT, marker="o", ms=3, label=f"accuracy{exact_mark}")
    axes.plot(x, [line["macro_f1"] for line in lines], color=_SECOND, ls="--", label=f"macro F1{exact_mark}")
    if any("personal_accuracy" in line for line in lines):
        own = [line.get("personal_accuracy", np.nan) for line in lines]
        axes.plot(x, own, color=_INK, marker="s", ms=3, label=f"accuracy of clients' own models{exact_mark}")
    losses = axes.twinx()
    losses.plot(
        x,
        [np.nan if line["loss"] is None else line["loss"] for line in lines],
        color="grey",
        lw=1,
        label=f"loss, right{exact_mark}",
    )
    losses.set_ylabel("cross-entropy, nats an image")
    losses.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = axes.get_legend_handles_labels()[0] + losses.get_legend_handles_labels()[0]
    axes.legend(handles=handles, loc="center right")
    _save(figure, file)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = _empty_figure(width, height)
    return figure, figure.add_subplot()


def _empty_figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", file: Path) -> None:
    figure.savefig(file, dpi=110)
