"""Plot of a canary audit, with histograms and error rates of the attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulations.attacks.canary.bounds import Bounds
from simulations.attacks.canary.declared_curve import declared_curve

_IN, _OUT, _GREY = "#b4552d", "#3f6fa3", "#8a8f94"
_TAIL = 1e-3


def draw_audit(file: Path, scores_in: np.ndarray, scores_out: np.ndarray, bounds: Bounds) -> None:
    """Draw the scores with and without the canary beside the error rates.

    Args:
        file: PNG file to write.
        scores_in: (n,) float64, scores with the canary.
        scores_out: (m,) float64, scores without it.
        bounds: Bounds of these scores.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _histograms(left, scores_in, scores_out, bounds.threshold)
    _trade_off(right, scores_in, scores_out, bounds)
    figure.suptitle(
        f"{bounds.judgement.verdict.capitalize()}: epsilon {bounds.lower:.2f} at least, for this adversary; "
        f"{bounds.upper:.2f} at most, by the ledger"
    )
    figure.savefig(file, dpi=110)


def _histograms(axes: Any, scores_in: np.ndarray, scores_out: np.ndarray, threshold: float) -> None:
    both = np.concatenate([scores_in, scores_out])
    lowest, highest = np.quantile(both, [_TAIL, 1 - _TAIL])
    bins = np.linspace(lowest, highest, max(12, min(80, round(len(both) ** 0.5))))
    for scores, colour, name in ((scores_out, _OUT, "without the canary"), (scores_in, _IN, "with the canary")):
        axes.hist(scores, bins=bins, density=True, color=colour, alpha=0.55, label=f"{name}: {len(scores):,} trainings")
    axes.axvline(threshold, color="black", lw=1, ls="--", label='threshold: above it, "in"')
    axes.set(xlabel="the adversary's score", ylabel="density", title="Scores")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.legend(fontsize=8, loc="upper left")


def _trade_off(axes: Any, scores_in: np.ndarray, scores_out: np.ndarray, bounds: Bounds) -> None:
    rates = np.linspace(0, 1, 201)
    axes.plot(rates, declared_curve(rates, bounds.plan), color="black", lw=1.5, label="least that the plan allows")
    axes.plot(*_reached(scores_in, scores_out), color=_IN, lw=1.5, label="what the attack reached")
    axes.plot(rates, 1 - rates, color=_GREY, lw=1, ls=":", label="guessing")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Trade-off of errors")
    axes.set(xlabel='"in" though the canary is out', ylabel='"out" though the canary is in')
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _reached(scores_in: np.ndarray, scores_out: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """Return false positive and false negative rates over all thresholds."""
    cuts = np.quantile(np.concatenate([scores_in, scores_out]), np.linspace(0, 1, 400))
    ordered_in, ordered_out = np.sort(scores_in), np.sort(scores_out)
    missed = np.searchsorted(ordered_in, cuts, side="right") / len(scores_in)
    alarms = 1 - np.searchsorted(ordered_out, cuts, side="right") / len(scores_out)
    return alarms.tolist(), missed.tolist()
