"""Images as a caller has them, read as training reads a file."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from common.data.decoding import BadImage, decode_in_order, read_image
from common.data.feature_extraction import square
from common.data.tones.rendering import Tones, render
from common.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Cell = Mapping[str, Any]
# A file, an opened image, or (h, w), (h, w, 1), (h, w, 3) pixels of 8 bits, or (h, w) of 16.
AnyImage = Union[str, "os.PathLike[str]", "Image", np.ndarray]
_ONE_IMAGE = (2, 3)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_AS_PNG: dict[str, Any] = {"format": "PNG", "compress_level": 0}
_AS_TIFF: dict[str, Any] = {"format": "TIFF", "compression": None}


def as_list(images: AnyImage | Iterable[AnyImage]) -> Sequence[AnyImage]:
    """Return the images of a call, also of a call with one image.

    Raises:
        DataError: An array has neither the shape of one image nor of several.
    """
    from PIL.Image import Image

    if isinstance(images, str | os.PathLike | Image):
        return [images]
    if isinstance(images, np.ndarray):
        if images.ndim in _ONE_IMAGE and (images.ndim == 2 or images.shape[2] in (1, 3, 4)):
            return [images]
        # A stack of gray images looks like one image of many channels.
        if images.ndim != 4:
            raise DataError(f"an array of shape {images.shape} is not an image: give a list of (h, w) or (h, w, 3)")
    return list(images)


def as_cell(image: AnyImage) -> Cell:
    """Return one image as a source holds it.

    Images in memory become lossless files. One decoder then reads all kinds of images.

    Raises:
        BadImage: It is not an image, or not one of 8 or 16 bits a channel.
    """
    from PIL import Image, ImageOps

    if isinstance(image, str | os.PathLike):
        return {"bytes": None, "path": os.fspath(image)}
    try:
        opened = image if isinstance(image, Image.Image) else Image.fromarray(_plain_array(image))
        stream, upright = io.BytesIO(), ImageOps.exif_transpose(opened)
        # PNG keeps the colour that stands for transparent pixels, and has no room for other modes.
        upright.save(stream, **_AS_PNG if upright.mode in _PNG_MODES else _AS_TIFF)
    except BadImage:
        raise
    # Pillow can raise anything for modes that no file format stores.
    except Exception as error:
        raise BadImage(f"not an image that can be read ({type(error).__name__})") from None
    return {"bytes": stream.getvalue(), "path": None}


def _plain_array(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise BadImage(f"{type(image).__name__} is not a path, an image of Pillow or an array")
    array = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    deep = array.ndim == 2 and array.dtype == np.uint16
    # Numbers of 0 to 1 would become black images.
    if array.dtype != np.uint8 and not deep:
        raise BadImage(f"an array of {image.dtype}: give uint8 of 0 to 255, or (h, w) uint16")
    return np.ascontiguousarray(array)


def read_squares(
    images: Iterable[AnyImage | Cell], side: int, interpolation: str, tones: Tones
) -> "Iterator[Image | BadImage]":
    """Decode images and yield them in order, as scaled squares.

    A bad image is yielded as the reason why it cannot be used.
    """
    read = partial(_read_square, side=side, interpolation=interpolation, tones=tones)
    for _, image in decode_in_order(read, enumerate(images)):
        yield image


def _read_square(image: AnyImage | Cell, side: int, interpolation: str, tones: Tones) -> "Image | BadImage":
    try:
        stored = read_image(image if isinstance(image, Mapping) else as_cell(image))
        return square(render(stored, tones), side, interpolation)
    except BadImage as error:
        return error


def name_of_image(image: AnyImage, number: int) -> str:
    """Return the name of an image in a message."""
    return str(Path(image)) if isinstance(image, str | os.PathLike) else f"image number {number}"
