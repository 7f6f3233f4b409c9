"""Curves, confusion matrix and calibration of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import METRICS, interval
from common.page.blocks import (
    MISSING,
    Block,
    Cell,
    Details,
    LineChart,
    Matrix,
    Notice,
    PixelMap,
    Section,
    Series,
    Table,
    name_cell,
    number_cell,
    pointer,
    share_cell,
    text,
)
from common.page.chart_geometry import pixel_image
from server.reporting.plots import frequent_errors
from server.reporting.run_page.run_files import ROUNDS, SUMMARY, RunFiles

SIMULATION_ONLY = "Simulation only: no real federation could see this"
# The largest matrix that is shown with its counts, and the number of errors that are listed of a larger one.
MAX_COUNTED, _MAX_ERRORS = 20, 100
_SHARES = tuple(metric for metric in METRICS if not (metric.needs_loss or metric.detail))
# Figures, each with the place of its object in a file.
_Points = list[tuple[Mapping[str, Any], tuple[Any, ...]]]


def curves_section(files: RunFiles) -> Section:
    """Return the curves over rounds, private figures with their error."""
    blocks: list[Block] = []
    if chart := private_curve(files):
        blocks += [chart, text("The band is one standard deviation of the noise in the counts.", small=True)]
    if charts := public_curves(files):
        blocks += [
            *charts,
            text("The server's own public images cost no privacy, and may differ from the clients'.", small=True),
        ]
    exact = exact_curves(files)
    if files.hidden and exact:
        blocks.append(Notice("simulation", SIMULATION_ONLY, exact))
    else:
        blocks += exact
    if not blocks:
        blocks.append(text("No model of this run has been evaluated, so there are no curves."))
    return Section("curves", "Curves", tuple(blocks))


def private_curve(files: RunFiles) -> LineChart | None:
    """Return the accuracy by noised counts, None if none left."""
    points: _Points = [
        (line["private"], (ROUNDS, number, "private"))
        for number, line in enumerate(files.rounds)
        if line.get("private", {}).get("accuracy_stddev") is not None
    ]
    last = files.summary.get("private_metrics")
    if last and last["accuracy_stddev"] is not None and all(last != point for point, _ in points):
        points.append((last, (SUMMARY, "private_metrics")))
    if not points:
        return None
    bands = [interval(point["accuracy"], point["accuracy_stddev"]) for point, _ in points]
    rows = tuple(
        (
            number_cell(point["evaluated_model"], pointer(*at, "evaluated_model")),
            share_cell(point["accuracy"], pointer(*at, "accuracy")),
            Cell(f"{low:.3f} to {high:.3f}"),
            number_cell(point["clients"], pointer(*at, "clients")),
        )
        for (point, at), (low, high) in zip(points, bands, strict=True)
    )
    lows, highs = zip(*bands, strict=True)
    values = tuple(point["accuracy"] for point, _ in points)
    return LineChart(
        "Accuracy by counts with noise, as a real federation sees it",
        "model after round",
        "share of held-out units that are predicted right",
        tuple(float(point["evaluated_model"]) for point, _ in points),
        (Series("accuracy, private", values, tuple(lows), tuple(highs)),),
        Table("Accuracy, private", ("model after round", "accuracy", "± 1 sd", "clients"), rows, (True,) * 4),
        (0.0, 1.0),
    )


def public_curves(files: RunFiles) -> tuple[LineChart, ...]:
    """Return the curves on the server's own public images, empty without such images."""
    points: _Points = [
        (line["public_test"], (ROUNDS, number, "public_test"))
        for number, line in enumerate(files.rounds)
        if "public_test" in line
    ]
    last = files.summary.get("public_test")
    if last and all(last["evaluated_model"] != point["evaluated_model"] for point, _ in points):
        points.append((last, (SUMMARY, "public_test")))
    if not points:
        return ()
    keys = [metric for metric in _SHARES if metric.key in points[0][0]]
    columns = ("model after round", *(metric.name for metric in keys), "images")
    rows = tuple(
        (
            _model(point, at),
            *(share_cell(point.get(metric.key), pointer(*at, metric.key)) for metric in keys),
            number_cell(point["examples"], pointer(*at, "examples")),
        )
        for point, at in points
    )
    shares = LineChart(
        "Accuracy and F1 on the server's public test images",
        "model after round",
        "share, 0 to 1",
        tuple(float(point["evaluated_model"]) for point, _ in points),
        tuple(_series(points, metric.key, metric.name, look) for look, metric in enumerate(keys, 1)),
        Table("Public test", columns, rows, (True,) * len(columns)),
        (0.0, 1.0),
    )
    return shares, *_loss_curve(points, "Loss on the server's public test images")


def exact_curves(files: RunFiles) -> tuple[LineChart, ...]:
    """Return the curves of exact counts, empty without any."""
    points: _Points = [(line, (ROUNDS, number)) for number, line in enumerate(files.rounds) if "accuracy" in line]
    summary = files.summary
    # The last round of clients' own counts is about the model before it.
    if (
        points
        and summary.get("accuracy") is not None
        and summary["evaluated_model"] != points[-1][0]["evaluated_model"]
    ):
        closing = {key: summary.get(key) for key in ("evaluated_model", *(metric.key for metric in _SHARES))}
        points.append((closing | {"examples": summary["evaluated_examples"]}, (SUMMARY,)))
    if not points:
        return ()
    x = tuple(float(point["evaluated_model"]) for point, _ in points)
    names = [metric.name for metric in _SHARES]
    series = [_series(points, metric.key, metric.name, look) for look, metric in enumerate(_SHARES, 1)]
    keys = [metric.key for metric in _SHARES]
    if any("personal_accuracy" in point for point, _ in points):
        series.append(_series(points, "personal_accuracy", "accuracy of clients' own models", 4))
        keys, names = [*keys, "personal_accuracy"], [*names, "own models"]
    columns = ("model after round", *names, "images")
    examples = [_images(point, at) for point, at in points]
    rows = tuple(
        (_model(point, at), *(share_cell(point.get(key), pointer(*at, key)) for key in keys), images)
        for (point, at), images in zip(points, examples, strict=True)
    )
    shares = LineChart(
        "Accuracy and F1 on held-out images",
        "model after round",
        "share, 0 to 1",
        x,
        tuple(series),
        Table("Accuracy and F1", columns, rows, (True,) * len(columns)),
        (0.0, 1.0),
    )
    return shares, *_loss_curve(points, "Loss")


def _loss_curve(points: _Points, title: str) -> tuple[LineChart, ...]:
    loss = _series(points, "loss", "loss", 1)
    if all(value is None for value in loss.values):
        return ()
    x = tuple(float(point["evaluated_model"]) for point, _ in points)
    rows = tuple((_model(point, at), number_cell(point.get("loss"), pointer(*at, "loss"), 4)) for point, at in points)
    table = Table(title, ("model after round", "loss"), rows, (True, True))
    return (LineChart(title, "model after round", "cross-entropy, nats an image", x, (loss,), table),)


def _series(points: _Points, key: str, name: str, look: int) -> Series:
    return Series(name, tuple(point.get(key) for point, _ in points), look=look)


def _model(point: Mapping[str, Any], at: tuple[Any, ...]) -> Cell:
    return number_cell(point["evaluated_model"], pointer(*at, "evaluated_model"))


def _images(point: Mapping[str, Any], at: tuple[Any, ...]) -> Cell:
    key = "examples" if at[0] == ROUNDS else "evaluated_examples"
    return number_cell(point["examples"], pointer(*at, key))


def confusion_section(files: RunFiles) -> Section:
    """Return the confusion matrices, private and exact."""
    blocks: list[Block] = []
    private, exact = files.counts.get("private"), files.counts.get("exact")
    if private:
        at = (files.counts_from, "private", "confusion")
        blocks += confusion_blocks(np.array(private["confusion"]), files.classes, at, "Counts with noise")
        stddev = np.sqrt(private["num_clients"]) * private["noise_stddev"]
        mean = float(np.mean(private["confusion"]))
        mostly = f" The mean count is {mean:.1f}, so most of what is shown is noise." if stddev > mean else ""
        blocks.append(text(f"Each count carries noise of {stddev:.1f}, and may be negative.{mostly}", small=True))
    if exact:
        at = (files.counts_from, "exact", "confusion")
        title = f"Exact counts, model after round {files.counts['evaluated_model']}"
        found = confusion_blocks(np.array(exact["confusion"]), files.classes, at, title)
        blocks += [Notice("simulation", SIMULATION_ONLY, tuple(found))] if exact["simulation_only"] else found
    if not blocks:
        blocks.append(text("No confusion matrix has left the clients, so there is none to show."))
    return Section("confusion", "Confusion matrix", tuple(blocks))


def confusion_blocks(confusion: np.ndarray, classes: Sequence[str], at: tuple[str, ...], title: str) -> list[Block]:
    """Return a matrix with its counts.

    Many classes are a picture beside the most frequent errors.
    """
    counted = np.maximum(confusion, 0)
    shares = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    names = tuple(name_cell(name) for name in classes)
    if len(classes) <= MAX_COUNTED:
        cells = tuple(
            tuple(number_cell(int(count), pointer(*at, row, column)) for column, count in enumerate(line))
            for row, line in enumerate(confusion)
        )
        return [Matrix(title, "true \\ predicted", names, names, cells, tuple(map(tuple, shares.tolist())), True)]
    rows = tuple(
        (names[row], names[column], number_cell(count, pointer(*at, row, column)), Cell(f"{shares[row, column]:.1%}"))
        for row, column, count in frequent_errors(confusion, _MAX_ERRORS)
    )
    columns = ("true class", "predicted class", "images", "share of the true class")
    table = Table(f"The {len(rows)} most frequent errors", columns, rows, (False, False, True, True))
    short = tuple(name.text for name in names)
    values = confusion.tolist()
    picture = PixelMap(title, "true", "predicted", short, short, values, pixel_image(shares), table)
    return [picture, Details("The most frequent errors", (_first(table, 25),))]


def _first(table: Table, number: int) -> Table:
    return Table(f"The {number} most frequent errors", table.columns, table.rows[:number], table.numeric)


# Place of the figures that follow from released histograms.
_SCORES = (SUMMARY, "score_metrics")


def calibration_section(files: RunFiles) -> Section:
    """Return what is known of the model's confidence."""
    figures = files.summary.get("score_metrics")
    blocks = _known(figures, _confidence_noise(files, figures)) if figures else (_UNKNOWN,)
    return Section("calibration", "Calibration", blocks)


_UNKNOWN = text(
    "No scores left the clients, so the run does not know whether the model's confidence can be believed. "
    "`bract evaluate` tells it for images that you have. With `privacy.closing=full` clients release what tells it."
)


def _confidence_noise(files: RunFiles, figures: dict[str, Any]) -> float:
    """Return the noise in each count of confidence, 0 for exact counts."""
    if not figures["noised"]:
        return 0.0
    return float(np.sqrt(figures["clients"]) * files.privacy["metrics"]["calibration_noise_stddev"])


def _known(figures: dict[str, Any], noise: float) -> tuple[Block, ...]:
    said = text(
        "The expected calibration error is ",
        share_cell(figures["ece"], pointer(*_SCORES, "ece")),
        *_noise(figures),
        ": by so much the model's confidence and its share of right predictions differ on average.",
    )
    hidden = "A bin of which noise is half or more has no share." if noise else ""
    note = [text(hidden, small=True)] if hidden else []
    return said, _reliability(figures["confidence"], noise), *note, *_auroc(figures)


def _noise(figures: dict[str, Any]) -> tuple[str | Cell, ...]:
    if not figures["noised"]:
        return ()
    of_noise = share_cell(figures["ece_of_noise"], pointer(*_SCORES, "ece_of_noise"))
    return " (the noise in the counts alone would show ", of_noise, ")"


def _reliability(confidence: Sequence[Sequence[int]], noise: float) -> LineChart:
    wrong, right = confidence
    bins = len(right)
    middles = tuple((place + 0.5) / bins for place in range(bins))
    # Noise can make a count negative, and a bin without votes, or with little but noise, has no share.
    least = 2 * math.sqrt(2) * noise
    shares = tuple(
        min(max(hits / (hits + misses), 0.0), 1.0) if hits + misses > least else None
        for hits, misses in zip(right, wrong, strict=True)
    )
    rows = tuple(
        (
            Cell(f"{place / bins:.2f} to {(place + 1) / bins:.2f}"),
            MISSING if share is None else Cell(f"{share:.3f}"),
            number_cell(right[place], pointer(*_SCORES, "confidence", 1, place)),
            number_cell(wrong[place], pointer(*_SCORES, "confidence", 0, place)),
        )
        for place, share in enumerate(shares)
    )
    columns = ("confidence", "share that is right", "right", "wrong")
    return LineChart(
        "Share of right predictions by confidence; a calibrated model follows the diagonal",
        "confidence of the prediction, %",
        "share that is right",
        tuple(100 * middle for middle in middles),
        (Series("this model", shares, bridged=True), Series("calibrated", middles, look=8)),
        Table("Calibration", columns, rows, (False, True, True, True)),
        (0.0, 1.0),
    )


def _auroc(figures: dict[str, Any]) -> tuple[Block, ...]:
    if figures["macro_auroc"] is None:
        return (text("AUROC cannot be told: the histograms of scores hold too few images for their noise."),)
    known = sum(found["auroc"] is not None for found in figures["classes"].values())
    over = "the classes" if known == len(figures["classes"]) else f"{known} of {len(figures['classes'])} classes"
    why = "" if known == len(figures["classes"]) else ", the others have too few images for their noise"
    cell = share_cell(figures["macro_auroc"], pointer(*_SCORES, "macro_auroc"))
    mean = text(f"The mean AUROC over {over} is ", cell, f"{why}.")
    rows = tuple(
        (
            name_cell(name),
            share_cell(found["auroc"], pointer(*_SCORES, "classes", name, "auroc")),
            share_cell(found["auroc_stddev"], pointer(*_SCORES, "classes", name, "auroc_stddev")),
            number_cell(found["units"], pointer(*_SCORES, "classes", name, "units")),
        )
        for name, found in figures["classes"].items()
    )
    columns = ("class", "AUROC", "sd by noise", "images")
    table = Table("AUROC of each class against the others", columns, rows, (False, True, True, True), sortable=True)
    return mean, table
