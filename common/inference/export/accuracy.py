"""Accuracy of several forms of one model on labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.data.decoding import BadImage
from common.errors import DataError
from common.inference.card import ModelCard
from common.inference.evaluation.labelled_images import LabelledImages
from common.inference.export.comparison import Runner
from common.inference.export.pixel_batches import rgb_squares
from common.system.progress import ProgressFactory

_BATCH = 32


@dataclass(frozen=True)
class Hits:
    """Right predictions of each form, of the images that could be read."""

    right: tuple[int, ...]
    images: int
    faults: tuple[tuple[str, str], ...]


def count_hits(
    images: LabelledImages, card: ModelCard, interpolation: str, runners: Sequence[Runner], progress: ProgressFactory
) -> Hits:
    """Count the right predictions of each runner on the same images.

    Raises:
        DataError: No image can be read.
    """
    advance = progress(len(images.rows), "Testing")
    right, count, faults = np.zeros(len(runners), np.int64), 0, []
    labels, pixels = list[int](), list[np.ndarray]()

    def classify() -> None:
        if pixels:
            batch = np.stack(pixels)
            right[:] += [int((run(batch).argmax(axis=1) == labels).sum()) for run in runners]
        labels.clear()
        pixels.clear()

    cells = (cell for _, cell in images.entries.cells(images.rows))
    for row, image in zip(images.rows.tolist(), rgb_squares(card, interpolation, cells), strict=True):
        advance(1)
        if isinstance(image, BadImage):
            faults.append((images.entries.place(row), str(image)))
            continue
        labels.append(int(images.entries.labels[row]))
        pixels.append(image)
        count += 1
        if len(pixels) == _BATCH:
            classify()
    classify()
    if not count:
        raise DataError(f"none of {len(images.rows)} images can be read: {faults[0][1]}")
    return Hits(tuple(right.tolist()), count, tuple(faults))
