"""Figures of each class and of each subgroup, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.metrics import score, wilson_interval
from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    Notice,
    Section,
    Table,
    TimeLine,
    name_cell,
    number_cell,
    pointer,
    share_cell,
    text,
)
from server.reporting.run_page.run_files import SUMMARY, RunFiles
from server.reporting.run_page.utility import SIMULATION_ONLY

_COLUMNS = ("class", "precision", "recall", "F1", "images")
# With more noise than this share of a sum, a ratio of sums says nothing.
_MOST_NOISE = 0.5


@dataclass(frozen=True)
class ClassFigures:
    """Figures of all classes with the ends of their intervals.

    Each is (classes,) float64, NaN where there is none.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def exact_figures(confusion: np.ndarray) -> dict[str, ClassFigures]:
    """Return figures of exact counts with intervals of 95 %.

    F1 is 2J / (1 + J), where J is the share of right predictions among all images that are of the class or predicted
    as it. So the interval of J gives that of F1.
    """
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = score(confusion)
    low, high = wilson_interval(hits, actual + predicted - hits)
    return {
        "precision": ClassFigures(scores.precision, *wilson_interval(hits, predicted)),
        "recall": ClassFigures(scores.recall, *wilson_interval(hits, actual)),
        "f1": ClassFigures(scores.f1, 2 * low / (1 + low), 2 * high / (1 + high)),
    }


def noised_figures(confusion: np.ndarray, cell_stddev: float) -> dict[str, ClassFigures]:
    """Return figures of noised counts with one standard deviation of the noise.

    The deviation is propagated linearly. Figures whose denominator is mostly noise are NaN.
    """
    cells = confusion.astype(np.float64)
    hits = np.diag(cells)
    # Noise can make a sum of errors negative. Left so in one figure and cut off in another, F1 would contradict the
    # precision beside it.
    missed, alarms = (np.maximum(cells.sum(axis=axis) - hits, 0.0) for axis in (1, 0))
    others = len(cells) - 1
    return {
        "precision": _ratio(hits, alarms, others, cell_stddev),
        "recall": _ratio(hits, missed, others, cell_stddev),
        # 2h / (2h + m + a) is h / (h + e) of e = (m + a) / 2, whose variance is half that of one of its parts.
        "f1": _ratio(hits, (missed + alarms) / 2, others / 2, cell_stddev),
    }


def _ratio(hits: np.ndarray, errors: np.ndarray, cells_of_errors: float, stddev: float) -> ClassFigures:
    """Return hits / (hits + errors) of noised counts.

    Errors have the noise of `cells_of_errors` cells.
    """
    whole = hits + errors
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.clip(hits / whole, 0.0, 1.0)
        spread = stddev * np.sqrt(errors**2 + cells_of_errors * hits**2) / whole**2
    unknown = whole * _MOST_NOISE <= stddev * np.sqrt(1 + cells_of_errors)
    value, spread = (np.where(unknown, np.nan, part) for part in (value, spread))
    return ClassFigures(value, np.clip(value - spread, 0, 1), np.clip(value + spread, 0, 1))


def classes_section(files: RunFiles) -> Section:
    """Return the table by class, private and exact."""
    private, exact = files.counts.get("private"), files.counts.get("exact")
    blocks: list[Block] = []
    if private:
        confusion = np.array(private["confusion"])
        stddev = float(np.sqrt(private["num_clients"]) * private["noise_stddev"])
        support = [Cell(f"{count:,} ± {stddev * np.sqrt(len(confusion)):.0f}") for count in confusion.sum(axis=1)]
        blocks.append(_table("By counts with noise", files, noised_figures(confusion, stddev), support, stored=False))
        note = (
            "Intervals are one standard deviation of the noise, which can make a number of images negative. A dash "
            "stands where noise is half of the count or more."
        )
        blocks.append(text(note, small=True))
    if exact:
        confusion = np.array(exact["confusion"])
        support = [number_cell(int(count)) for count in confusion.sum(axis=1)]
        same_model = files.counts["evaluated_model"] == files.summary.get("evaluated_model")
        found: tuple[Block, ...] = (
            _table("By exact counts", files, exact_figures(confusion), support, stored=same_model),
            text(
                "Intervals are Wilson's, at 95 %: how far chance in the choice of these images could move a figure.",
                small=True,
            ),
        )
        blocks += [Notice("simulation", SIMULATION_ONLY, found)] if exact["simulation_only"] else found
    if not blocks:
        blocks.append(text("No counts by class have left the clients."))
    return Section("classes", "By class", tuple(blocks))


# Place of the figures by subgroup.
_SUBGROUPS = (SUMMARY, "subgroup_metrics")
# Lanes of more would leave no room for their names.
_MAX_LANES = 20


def subgroups_section(files: RunFiles) -> Section:
    """Return the accuracy of each subgroup, in the order of the public list."""
    figures = files.summary.get("subgroup_metrics")
    if not figures:
        return Section("subgroups", "By subgroup", (text("No counts by subgroup have left the clients."),))
    found, spread = figures["subgroups"], float(np.sqrt(figures["num_clients"]) * figures["noise_stddev"])
    rows = tuple(_subgroup(name, one, spread) for name, one in found.items())
    columns = ("subgroup", "accuracy", "units" if figures["noised"] else "images", "right", "wrong")
    table = Table(f"Accuracy by {name_cell(figures['column']).text}", columns, rows)
    intervals = (
        f"Intervals are one standard deviation of the noise, and each count carries noise of {spread:.1f}. A dash "
        "stands where the noise is as large as what it hides."
        if figures["noised"]
        else "Intervals are Wilson's, at 95 %: how far chance in the choice of these images could move a figure."
    )
    said = text(
        "Subgroups are in the order of the public list, and `other` holds every value that it does not name. They hold "
        "different classes in different numbers, so look at the intervals and the numbers of images before you compare "
        f"them. {intervals}",
        small=True,
    )
    return Section("subgroups", "By subgroup", (*_subgroup_chart(figures, rows, columns), table, said))


def _subgroup(name: str, found: Mapping[str, Any], spread: float) -> tuple[Cell, ...]:
    at = (*_SUBGROUPS, "subgroups", name)
    units = found["right"] + found["wrong"]
    return (
        name_cell(name),
        share_cell(found["accuracy"], pointer(*at, "accuracy"), found["low"], found["high"]),
        Cell(f"{units:,} ± {np.sqrt(2) * spread:.0f}") if spread else number_cell(units),
        number_cell(found["right"], pointer(*at, "right")),
        number_cell(found["wrong"], pointer(*at, "wrong")),
    )


def _subgroup_chart(
    figures: Mapping[str, Any], rows: Sequence[tuple[Cell, ...]], columns: tuple[str, ...]
) -> tuple[Block, ...]:
    known = [(name, one) for name, one in figures["subgroups"].items() if one["accuracy"] is not None]
    shown = known[:_MAX_LANES]
    if not shown:
        return ()
    places = {name: at for at, name in enumerate(figures["subgroups"])}
    table = Table("Accuracy by subgroup", columns, tuple(rows[places[name]] for name, _ in shown))
    title = "Accuracy by subgroup with its interval" + (" by counts with noise" if figures["noised"] else "")
    of_all = f", the first {len(shown)} of {len(known)}" if len(known) > len(shown) else ""
    chart = TimeLine(
        f"{title}{of_all}",
        "share that is predicted right, %",
        tuple(name_cell(name).text for name, _ in shown),
        tuple(100 * one["accuracy"] for _, one in shown),
        tuple(range(len(shown))),
        (0.0, 100.0),
        table,
        tuple((100 * one["low"], 100 * one["high"]) for _, one in shown),
    )
    return (chart,)


def _table(
    caption: str, files: RunFiles, figures: dict[str, ClassFigures], support: Sequence[Cell], *, stored: bool
) -> Table:
    per_class = files.summary.get("per_class", {})
    rows = []
    for place, name in enumerate(files.classes):
        cells = []
        for key, of in figures.items():
            known = stored and key in per_class.get(name, {})
            source = pointer(SUMMARY, "per_class", name, key) if known else ""
            value = float(per_class[name][key]) if known else float(of.values[place])
            ends = float(of.low[place]), float(of.high[place])
            has_ends = bool(np.isfinite(ends).all())
            shown = Cell(f"{value:.3f}", value, source, *(ends if has_ends else (None, None)))
            cells.append(shown if np.isfinite(value) else MISSING)
        rows.append((name_cell(name), *cells, support[place]))
    return Table(caption, _COLUMNS, tuple(rows), sortable=True)
