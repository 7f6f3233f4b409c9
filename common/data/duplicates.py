"""Search for equal images and for near-duplicates, such as scaled or re-encoded copies."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DISTANCE = 4
MIN_CORRELATION = 0.97
MIN_CONTRAST = 6.0
METHOD = (
    f"difference hash of 64 bits (9 x 8 gray pixels), Hamming distance at most {MAX_DISTANCE}, then correlation of the "
    f"16 x 16 colour thumbnails at least {MIN_CORRELATION}; images without contrast (standard deviation of the "
    f"thumbnail below {MIN_CONTRAST:g} of 255) are left out"
)
_SIDE = 16
_BLOCK = 512


@dataclass(frozen=True)
class Sketches:
    """Small summaries of n images that near-duplicates are found by.

    Hashes are (n, 64) float32 of -1 and 1; thumbnails are (n, 768) uint8, 16 x 16 RGB pixels each.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray

    @classmethod
    def empty(cls, count: int) -> "Sketches":
        """Return sketches of `count` images, still without content."""
        return cls(np.ones((count, 64), np.float32), np.zeros((count, 3 * _SIDE * _SIDE), np.uint8))

    def note(self, row: int, image: "Image") -> None:
        """Write the sketch of one image into its row."""
        from PIL.Image import Resampling

        gray = np.asarray(image.convert("L").resize((9, 8), Resampling.BOX), dtype=np.int16)
        self.hashes[row] = np.where(gray[:, 1:] > gray[:, :-1], 1.0, -1.0).reshape(-1)
        small = image.convert("RGB").resize((_SIDE, _SIDE), Resampling.BOX)
        self.thumbnails[row] = np.asarray(small).reshape(-1)


def find_near(sketches: Sketches, left: np.ndarray, right: np.ndarray | None) -> list[tuple[int, int, float]]:
    """Return pairs of images that show nearly the same, the best match of each.

    Searches the rows `left` for matches among `right`, or among themselves without `right`, each pair once. Each match
    is (row of left, row of right, correlation), in the order of `left`.

    Source: The difference hash is N. Krawetz's "Kind of Like That" (2013); the correlation removes its false alarms.
    """
    unit = _standardise(sketches.thumbnails)
    # All images without contrast look alike, so they would all match each other.
    varied = np.asarray(unit.any(axis=1))
    left = left[varied[left]]
    among = left if right is None else right[varied[right]]
    pairs = []
    for start in range(0, len(left), _BLOCK):
        block = left[start : start + _BLOCK]
        # The product of two hashes of -1 and 1 is 64 - 2 x distance.
        close = np.asarray(sketches.hashes[block] @ sketches.hashes[among].T >= 64 - 2 * MAX_DISTANCE)
        # Within one list, compare with earlier rows alone, so that each pair comes once and no image matches itself.
        if right is None:
            close = np.logical_and(close, np.arange(len(among)) < start + np.arange(len(block))[:, None])
        for index in np.flatnonzero(close.any(axis=1)):
            candidates = among[close[index]]
            scores = unit[candidates] @ unit[block[index]]
            best = int(np.argmax(scores))
            if scores[best] >= MIN_CORRELATION:
                pairs.append((int(block[index]), int(candidates[best]), float(scores[best])))
    return pairs


def find_equal(digests: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Return groups of two and more rows with equal pixels, each in row order."""
    if not len(rows):
        return []
    _, group = np.unique(digests[rows], axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    return sorted(part.tolist() for part in np.split(rows[order], np.cumsum(sizes)[:-1]) if len(part) > 1)


def _standardise(thumbnails: np.ndarray) -> np.ndarray:
    """Return centred rows whose products are correlations, zero without contrast."""
    values = thumbnails.astype(np.float32).reshape(len(thumbnails), -1, 3)
    values = (values - values.mean(axis=1, keepdims=True)).reshape(thumbnails.shape)
    spread = values.std(axis=1, keepdims=True)
    length = spread * np.sqrt(values.shape[1])
    return np.asarray(np.divide(values, length, out=np.zeros_like(values), where=spread >= MIN_CONTRAST))
