"""Labelled images of a source, scored by one or two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.config.listed_values import join_names
from common.config.sections import DataConfig
from common.data.decoding import BadImage
from common.data.sources.base_source import Entries
from common.data.sources.manifest import read_column
from common.data.sources.registry import open_source
from common.errors import DataError, ModelError
from common.inference.classifier import Classifier
from common.inference.evaluation.scored_images import ScoredImages
from common.system.progress import ProgressFactory

Part = Literal["test", "train", "all"]
PARTS: dict[Part, str] = {
    "test": "of the source's own test part",
    "train": "of the source's own training part",
    "all": "all of the source",
}


@dataclass(frozen=True)
class LabelledImages:
    """The images of a source that an evaluation is about.

    `rows` are those of `entries` whose class the models know, (n,) int64, and `groups` their values in a column, empty
    without one. `unknown` are images of other classes, each with the reason.
    """

    entries: Entries
    rows: np.ndarray
    part: Part
    groups: tuple[str, ...]
    unknown: tuple[tuple[str, str], ...]


def open_labelled(
    data: DataConfig, classes: tuple[str, ...], *, part: Part | None = None, by: str | None = None
) -> LabelledImages:
    """Open the images of a source under a model's classes.

    Args:
        data: The source.
        classes: Class names of the model.
        part: Part of the source; None for its own test part, or all where it has none.
        by: Column of a manifest.

    Raises:
        DataError: The source cannot be read, lacks the column, or has no image of these classes.
    """
    # The classes are the model's, so the folders cannot be taken for others.
    entries = open_source(data.model_copy(update={"classes": join_names(classes)})).entries
    count = len(entries.labels)
    chosen: Part = part or ("test" if entries.num_train < count else "all")
    inside = np.ones(count, dtype=bool)
    if chosen != "all":
        inside = (np.arange(count) < entries.num_train) == (chosen == "train")
    rows = np.flatnonzero(inside & (entries.labels >= 0))
    if not len(rows):
        raise DataError(
            f"data.source={data.source!r} has no image of the model's classes, {', '.join(classes[:10])} "
            f"({PARTS[chosen]})"
        )
    column = () if by is None else read_column(data, by)
    unknown = [
        (entries.place(row), entries.label_faults.get(row, "no label"))
        for row in np.flatnonzero(inside & (entries.labels < 0)).tolist()
    ]
    groups = tuple(column[row] for row in rows) if by is not None else ()
    return LabelledImages(entries, rows, chosen, groups, tuple(unknown))


@dataclass(frozen=True)
class Scored:
    """The scores of several models on the same images.

    `rows` are positions in `LabelledImages.rows` of the images that could be read; `faults` are the others.
    """

    models: tuple[ScoredImages, ...]
    rows: np.ndarray
    faults: tuple[tuple[str, str], ...]


def score_labelled(images: LabelledImages, models: Sequence[Classifier], progress: ProgressFactory) -> Scored:
    """Score images with models of the same classes.

    Raises:
        DataError: No image can be read.
        ModelError: A model has other classes than the first.
    """
    entries, classes = images.entries, models[0].classes
    orders = [_order(model, classes) for model in models]
    logits, faults = [], {}
    for model, order in zip(models, orders, strict=True):
        advance = progress(len(images.rows), "Classifying")
        cells = (cell for _, cell in entries.cells(images.rows))
        found = list(model.scores(cells, advance))
        faults = {at: str(row) for at, row in enumerate(found) if isinstance(row, BadImage)}
        logits.append([row[order] for row in found if not isinstance(row, BadImage)])
    rows = np.array([at for at in range(len(images.rows)) if at not in faults], dtype=np.int64)
    if not len(rows):
        raise DataError(f"none of {len(images.rows)} images can be read: {next(iter(faults.values()))}")
    used = images.rows[rows]
    scored = tuple(ScoredImages(entries.labels[used], np.stack(part), _units(entries, used)) for part in logits)
    places = ((entries.place(images.rows[at]), reason) for at, reason in faults.items())
    return Scored(scored, rows, tuple(places))


def _order(model: Classifier, classes: tuple[str, ...]) -> list[int]:
    if set(model.classes) != set(classes):
        raise ModelError(f"the models have different classes: {', '.join(classes)} and {', '.join(model.classes)}")
    return [model.classes.index(name) for name in classes]


def _units(entries: Entries, rows: np.ndarray) -> np.ndarray:
    """Return a number for each image's unit.

    An image without a unit is one of its own.
    """
    if entries.units is None:
        return np.arange(len(rows))
    names = np.array([entries.units[row] or f"\0{row}" for row in rows])
    return np.asarray(np.unique(names, return_inverse=True)[1])
