"""Scaled copies of the images that a scan has decoded."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from common.data.feature_extraction import scaled
from common.data.inputs.input_format import InputFormat

if TYPE_CHECKING:
    from PIL.Image import Image

# Five thousand images of 128 pixels. Decoding is slow for large images, whose copies fit in here.
MEMORY_BYTES = 256 * 2**20


class ScaledCopies:
    """Images by their digests, as many as fit into memory.

    An image that is not here must be decoded again. Several threads may use it. Copies have the size that `wanted`
    returns, and the images' own size as long as it returns None.
    """

    def __init__(self, wanted: Callable[[], InputFormat | None], memory_bytes: int = MEMORY_BYTES) -> None:
        self._wanted = wanted
        self._room = memory_bytes
        self._lock = threading.Lock()
        self._kept: dict[bytes, Image | np.ndarray] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._kept

    def offer(self, image: "Image", digest: bytes) -> None:
        """Keep an image's canonical pixels if there is room."""
        if digest in self._kept or self._room <= 0:
            return
        wanted = self._wanted()
        copy = image if wanted is None else _scaled(image, wanted)
        size = copy.nbytes if isinstance(copy, np.ndarray) else copy.width * copy.height * 4
        with self._lock:
            if size <= self._room and digest not in self._kept:
                self._kept[digest] = copy
                self._room -= size

    def scaled(self, digest: bytes, wanted: InputFormat) -> np.ndarray:
        """Return the scaled image of a digest that is here, (side, side, channels)."""
        copy = self._kept[digest]
        return copy if isinstance(copy, np.ndarray) else _scaled(copy, wanted)

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = {}
        self._room = 0


def _scaled(image: "Image", wanted: InputFormat) -> np.ndarray:
    return scaled(image, wanted.side, wanted.channels, wanted.interpolation)
