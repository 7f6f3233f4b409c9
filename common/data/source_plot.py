"""Plot of a source with class counts and example images."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.decoding import read_image
from common.data.scan import Scan
from common.data.sources.base_source import ImageSource
from common.data.tones.rendering import Tones, render
from common.plot_labels import short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

MAX_CLASSES = 40
_EXAMPLES = 8
_CELL = 64
_NOTE_WIDTH = 160  # characters
_COLOURS = {"train": "#2e7d5b", "test": "#e0a030"}


def draw_source(file: Path, source: ImageSource, scan: Scan, facts: Mapping[str, Any], *, tones: Tones) -> None:
    """Draw bars of the class counts beside examples in a model's tones.

    Of more than `MAX_CLASSES` classes only the largest and the smallest are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = _choose(facts["classes"])
    note = fill(f"Not read: {'; '.join(facts['not_read'])}", _NOTE_WIDTH).replace("$", r"\$") * bool(facts["not_read"])
    height = 1.5 + 0.62 * len(shown) + 0.17 * (note.count("\n") + 1)
    figure = Figure(figsize=(11.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    bars, examples = figure.subplots(1, 2, width_ratios=(6.2, 5.0))
    _draw_bars(bars, facts, shown)
    mosaic = _mosaic(source, scan, shown, tones)
    examples.imshow(mosaic, extent=(0, _EXAMPLES, len(shown) - 0.5, -0.5), aspect="auto")
    examples.set(xticks=[], yticks=[], title="examples")
    figure.suptitle(_title(facts, len(shown)))
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9)
    figure.savefig(file, dpi=100)


def _choose(classes: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of the classes to show."""
    if len(classes) <= MAX_CLASSES:
        return list(range(len(classes)))
    by_size = sorted(range(len(classes)), key=lambda number: -classes[number]["train"] - classes[number]["test"])
    return [*by_size[: MAX_CLASSES // 2], *by_size[-MAX_CLASSES // 2 :]]


def _draw_bars(axes: "Axes", facts: Mapping[str, Any], shown: list[int]) -> None:
    rows = [facts["classes"][number] for number in shown]
    places, start = np.arange(len(rows)), np.zeros(len(rows))
    for part in ("train", "test"):
        amounts = np.array([row[part] for row in rows])
        if amounts.any():
            axes.barh(places, amounts, left=start, color=_COLOURS[part], label=part, height=0.7)
        start = start + amounts
    for place, total in enumerate(start.tolist()):
        axes.text(total, place, f" {int(total):,}", va="center", fontsize=9)
    axes.set_yticks(places, [short_label(row["name"]) for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, max(1.0, 1.15 * start.max(initial=0))), xlabel="usable images")
    if facts["test"]:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _title(facts: Mapping[str, Any], shown: int) -> str:
    title = f"{short_label(facts['source'])}: {facts['usable']:,} usable images of {len(facts['classes']):,} classes"
    if facts["bad"]:
        title += f", {len(facts['bad']):,} bad files"
    if shown < len(facts["classes"]):
        title += f"\nthe {shown // 2} largest and the {shown // 2} smallest classes"
    return title


def _mosaic(source: ImageSource, scan: Scan, shown: list[int], tones: Tones) -> np.ndarray:
    """Return one image with a line of evenly spread examples for each class."""
    canvas = np.full((len(shown) * _CELL, _EXAMPLES * _CELL, 3), 255, dtype=np.uint8)
    spots: dict[int, tuple[int, int]] = {}
    for line, number in enumerate(shown):
        rows = np.flatnonzero(scan.usable & (scan.labels == number))
        chosen = rows[np.linspace(0, len(rows) - 1, min(_EXAMPLES, len(rows))).astype(int)] if len(rows) else rows
        spots |= {int(row): (line, column) for column, row in enumerate(chosen)}
    for row, cell in source.entries.cells(np.array(sorted(spots), dtype=np.int64)):
        line, column = spots[row]
        top, left = line * _CELL + 2, column * _CELL + 2
        example = _thumbnail(render(read_image(cell), tones))
        canvas[top : top + _CELL - 4, left : left + _CELL - 4] = np.asarray(example)
    return canvas


def _thumbnail(image: "Image") -> "Image":
    from PIL import ImageOps

    side = _CELL - 4
    return ImageOps.pad(image.convert("RGB"), (side, side), color=(235, 235, 235))
