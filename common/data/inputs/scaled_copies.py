"""Scaled copies of the images that a scan has decoded."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from common.data.feature_extraction import scaled
from common.data.inputs.input_format import InputFormat

if TYPE_CHECKING:
    from PIL.Image import Image

_Scaling = tuple[int, int, str]
# Times the size of a copy, from which on a copy by a guess is kept and not the image.
_LEAST_FOR_GUESS = 4
# Five thousand images of 128 pixels, or eighty thousand of 32. Others are decoded again.
MEMORY_BYTES = 256 * 2**20


class ScaledCopies:
    """Images by their digests, as many as fit into memory.

    An image that is not here must be decoded again. Several threads may use it. Copies have the format that `wanted`
    returns. Images that take less memory as they are, and all as long as it returns None, are scaled when asked for.

    Attributes:
        guess: Format of copies as long as the right one is not known. It serves for images that would take several
            times the memory of a copy.
    """

    guess: InputFormat | None = None

    def __init__(self, wanted: Callable[[], InputFormat | None], memory_bytes: int = MEMORY_BYTES) -> None:
        self._wanted = wanted
        self._room = memory_bytes
        self._lock = threading.Lock()
        # With how they were scaled, None for an image's own pixels.
        self._kept: dict[bytes, tuple[np.ndarray, _Scaling | None]] = {}
        self._taken: set[bytes] = set()

    def offer(self, image: "Image", digest: bytes) -> bool:
        """Keep an image's canonical pixels if there is room.

        It returns True if there was.
        """
        wanted, own = self._wanted(), image.width * image.height * len(image.getbands())
        chosen, least = (wanted, 1) if wanted is not None else (self.guess, _LEAST_FOR_GUESS)
        copy = own if chosen is None else chosen.side**2 * chosen.channels
        # An image's own pixels serve for every format.
        if copy * least >= own:
            chosen, copy = None, own
        # Room is taken first: scaling an image that finds none would take as long as to decode it again.
        with self._lock:
            if copy > self._room or digest in self._taken:
                return False
            self._room -= copy
            self._taken.add(digest)
        if chosen is None:
            # Pixels alone: an image may hold a profile of colours that is larger than they are.
            self._kept[digest] = np.asarray(image), None
        else:
            self._kept[digest] = _scaled(image, chosen), _scaling_of(chosen)
        return True

    def forget(self, digest: bytes) -> None:
        """Give one image's memory to others.

        The image is not taken again.
        """
        pixels, _ = self._kept.pop(digest)
        with self._lock:
            self._room += pixels.nbytes

    def serves(self, digest: bytes, wanted: InputFormat) -> bool:
        """Return True if a copy of this format can be had."""
        return digest in self._kept and self._kept[digest][1] in (None, _scaling_of(wanted))

    def scaled(self, digest: bytes, wanted: InputFormat) -> np.ndarray:
        """Return the scaled image of a digest that `serves`, (side, side, channels)."""
        from PIL import Image

        pixels, _ = self._kept[digest]
        if pixels.shape == (wanted.side, wanted.side, wanted.channels):
            return pixels
        return _scaled(Image.fromarray(pixels), wanted)

    def clear(self) -> None:
        """Give the memory back."""
        self._kept, self._taken = {}, set()
        self._room = 0


def _scaled(image: "Image", wanted: InputFormat) -> np.ndarray:
    return scaled(image, wanted.side, wanted.channels, wanted.interpolation)


def _scaling_of(wanted: InputFormat) -> _Scaling:
    return wanted.side, wanted.channels, wanted.interpolation
