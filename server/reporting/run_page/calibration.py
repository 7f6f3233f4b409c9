"""Calibration and AUROC, from the histograms that clients released."""

from collections.abc import Sequence
from typing import Any

from server.reporting.page.blocks import (
    MISSING,
    Block,
    Cell,
    LineChart,
    Section,
    Series,
    Table,
    name_cell,
    number_cell,
    pointer,
    share_cell,
    text,
)
from server.reporting.run_page.run_files import SUMMARY, RunFiles

_AT = (SUMMARY, "score_metrics")


def calibration_section(files: RunFiles) -> Section:
    """Return what is known of the model's confidence."""
    figures = files.summary.get("score_metrics")
    blocks = _known(figures) if figures else (_UNKNOWN,)
    return Section("calibration", "Calibration", blocks)


_UNKNOWN = text(
    "No scores left the clients, so the run does not know whether the model's confidence can be believed. "
    "`bract evaluate` tells it for images that you have. With `privacy.closing=full` clients release what tells it."
)


def _known(figures: dict[str, Any]) -> tuple[Block, ...]:
    said = text(
        "The expected calibration error is ",
        share_cell(figures["ece"], pointer(*_AT, "ece")),
        *_noise(figures),
        ": by so much the model's confidence and its share of right predictions differ on average.",
    )
    return said, _reliability(figures["confidence"]), *_auroc(figures)


def _noise(figures: dict[str, Any]) -> tuple[str | Cell, ...]:
    if not figures["noised"]:
        return ()
    of_noise = share_cell(figures["ece_of_noise"], pointer(*_AT, "ece_of_noise"))
    return " (the noise in the counts alone would show ", of_noise, ")"


def _reliability(confidence: Sequence[Sequence[int]]) -> LineChart:
    wrong, right = confidence
    bins = len(right)
    middles = tuple((place + 0.5) / bins for place in range(bins))
    # Noise can make a count negative, and a bin without votes has no share.
    shares = tuple(
        min(max(hits / (hits + misses), 0.0), 1.0) if hits + misses > 0 else None
        for hits, misses in zip(right, wrong, strict=True)
    )
    rows = tuple(
        (
            Cell(f"{place / bins:.2f} to {(place + 1) / bins:.2f}"),
            MISSING if share is None else Cell(f"{share:.3f}"),
            number_cell(right[place], pointer(*_AT, "confidence", 1, place)),
            number_cell(wrong[place], pointer(*_AT, "confidence", 0, place)),
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
    mean = text(
        "The mean AUROC over the classes is ", share_cell(figures["macro_auroc"], pointer(*_AT, "macro_auroc")), "."
    )
    rows = tuple(
        (
            name_cell(name),
            share_cell(found["auroc"], pointer(*_AT, "classes", name, "auroc")),
            share_cell(found["auroc_stddev"], pointer(*_AT, "classes", name, "auroc_stddev")),
            number_cell(found["units"], pointer(*_AT, "classes", name, "units")),
        )
        for name, found in figures["classes"].items()
    )
    columns = ("class", "AUROC", "sd by noise", "images")
    table = Table("AUROC of each class against the others", columns, rows, (False, True, True, True), sortable=True)
    return mean, table
