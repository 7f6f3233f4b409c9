"""The picture of a benchmark, with a bar for each variant of each case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.plot_labels import short_label
from simulations.benchmarks.contract import Benchmark

_COLOURS = ("#2a7f62", "#c8553d", "#3d5a80", "#b08968", "#7d4f7d", "#6b705c")


def draw_bars(file: Path, benchmark: Benchmark, results: Mapping[str, Any]) -> None:
    """Draw the first figure's medians, with lines from the least to the greatest value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key, label = benchmark.figures[0].key, benchmark.figures[0].label
    bars = [
        (case["name"] if place == 0 else "", row["name"], row["figures"][key], place)
        for case in results["cases"]
        for place, row in enumerate(case["variants"])
        if key in row["figures"]
    ]
    figure = Figure(figsize=(9.0, max(2.5, 1.2 + 0.32 * len(bars))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, (_, _, spread, place) in enumerate(bars):
        middle = spread["median"]
        ends = [[middle - spread["min"]], [spread["max"] - middle]]
        axes.barh(row, middle, xerr=ends, color=_COLOURS[place % len(_COLOURS)], ecolor="#22313f", capsize=2)
    names = [short_label(f"{case}  {name}" if case else name, 48) for case, name, _, _ in bars]
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    middles = [spread["median"] for _, _, spread, _ in bars if spread["median"] > 0]
    if middles and max(middles) > 50 * min(middles):
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title(benchmark.name)
    figure.savefig(file, dpi=110)
