"""A membership attack on a screen and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulations.attacks.membership.report import Found, thinned, verdict
from simulations.attacks.membership.roc import LEAST_FALSE_ALARMS, Rate, largest_tpr

_COLOURS = ("#b4552d", "#3f6fa3", "#2a6f4e", "#a08320", "#7a4f8a")
_GREY = "#8a8f94"


def show_membership(results: Sequence[Found], console: Console) -> None:
    """Print rates and one sentence for each curve, at most 80 columns wide.

    Args:
        results: At least one.
        console: Where to print.
    """
    first = results[0]
    console.print("[bold]Can an attacker tell who was in the training data?[/]", highlight=False)
    _say(
        console,
        f"LiRA on the final model: {first.models} models a line, {first.images:,} images, each in half of the models. "
        "Found: training images named, while at most so many others are accused.",
    )
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    table.add_column("")
    for name in ("accuracy", "AUC", "found at 0.1 %", "found at 1 %", "epsilon allows"):
        table.add_column(name, justify="right", overflow="fold")
    for found in results:
        table.add_row(*_cells(found))
    table.add_row("guessing", "", "0.500", "0.10 %", "1.00 %", "", style="dim")
    console.print(table)
    for found in results:
        style = "bold red" if not found.within else "red" if found.beyond_chance else ""
        _say(console, f"{found.curve.label}: {verdict(found)}.", style)
    _say(
        console,
        "What one attack does not find is not proven safe: this one sees the last model only, a server sees one each "
        "round. Epsilon allows any attack the last two figures, at 0.1 % and at 1 %. Intervals: 95 %, Clopper-Pearson.",
    )


def _cells(found: Found) -> list[str]:
    limits = [f"{100 * rate.limit:.3g} %" for rate in found.rates if rate.limit is not None]
    return [
        found.curve.label,
        f"{found.accuracy:.3f}",
        f"{found.auc:.3f}",
        *map(_rate, found.rates),
        ", ".join(limits) or "anything",
    ]


def _rate(rate: Rate) -> str:
    if not rate.enough:
        return "too few images"
    return f"{100 * rate.tpr:.2f} % ({100 * rate.low:.2f}-{100 * rate.high:.2f})"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Padding(Text(text, style), (0, 0, 0, 2), expand=False))


def draw_membership(file: Path, results: Sequence[Found]) -> None:
    """Draw all curves over logarithmic axes, with what each epsilon allows.

    Args:
        file: PNG to write.
        results: At least one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first = results[0]
    others = first.roc.num_others  # members are alike for all curves, and so are the others
    rates = np.geomspace(1 / others, 1, 400)
    for number, found in enumerate(results):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(*thinned(found.roc), color=colour, lw=1.8, label=f"{found.curve.label}: AUC {found.auc:.3f}")
        if found.curve.epsilon is not None:
            limit = largest_tpr(rates, found.curve.epsilon, found.curve.delta)
            axes.plot(rates, limit, color=colour, lw=1, ls="--")
        _draw_intervals(axes, found, colour, 1 + 0.06 * number)
    axes.plot(rates, rates, color=_GREY, lw=1, ls=":", label="guessing")
    axes.plot([], [], color=_GREY, lw=1, ls="--", label="the most that the epsilon of a colour allows")
    few = min(1.0, LEAST_FALSE_ALARMS / others)
    axes.axvspan(1 / others, few, color=_GREY, alpha=0.15, lw=0, label="under ten false alarms: too few to tell")
    axes.set(xscale="log", yscale="log", xlim=(1 / others, 1), ylim=(1 / others, 1.1))
    axes.set(xlabel="false-positive rate: others accused", ylabel="true-positive rate: training images found")
    axes.set_title(f"Who was in the training data? {first.models} models a curve, {first.images:,} images")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(file, dpi=110)


def _draw_intervals(axes: Any, found: Found, colour: str, beside: float) -> None:
    """Draw the intervals at each level side by side."""
    for rate in found.rates:
        axes.plot([rate.fpr * beside] * 2, [max(rate.low, 1e-9), rate.high], color=colour, lw=2.5, alpha=0.8)
