"""Images in memory as an exported model takes them."""

from collections.abc import Iterable, Iterator

import numpy as np

from common.data.decoding import BadImage
from common.errors import DataError
from common.inference.card import ModelCard
from common.inference.images import Cell, read_squares
from common.inference.inputs import NamedImages

# ONNX Runtime's own examples calibrate on a few hundred images. More change the ranges little.
MAX_CALIBRATION = 512


def rgb_squares(card: ModelCard, interpolation: str, cells: Iterable[Cell]) -> Iterator[np.ndarray | BadImage]:
    """Yield images as RGB pixels (side, side, 3) uint8.

    For a bad image the reason is yielded.
    """
    for image in read_squares(cells, card.side, interpolation, card.tones):
        yield image if isinstance(image, BadImage) else np.asarray(image.convert("RGB"))


def calibration_pixels(card: ModelCard, interpolation: str, images: NamedImages) -> np.ndarray:
    """Return up to `MAX_CALIBRATION` images, spread evenly over all, (n, side, side, 3) uint8.

    Raises:
        DataError: An image cannot be read.
    """
    # Rounded up: folders are in the order of classes, and a step too small would leave out the last classes.
    step = max(1, -(-images.number // MAX_CALIBRATION))
    chosen = [item for at, item in enumerate(images) if at % step == 0][:MAX_CALIBRATION]
    found = list(rgb_squares(card, interpolation, (cell for _, cell in chosen)))
    for (name, _), image in zip(chosen, found, strict=True):
        if isinstance(image, BadImage):
            raise DataError(f"--calibrate: {name}: {image}")
    return np.stack([image for image in found if not isinstance(image, BadImage)])
