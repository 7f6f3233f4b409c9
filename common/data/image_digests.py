"""Digests that name the images of one client."""

from dataclasses import dataclass, replace

import numpy as np


# Compared by identity (eq=False): arrays cannot be compared as one value, and an object must serve as a cache key.
@dataclass(frozen=True, eq=False)
class ImageDigests:
    """Digests of the images in one part of a client's data.

    Digests are (n, 32) uint8, SHA-256 of files or pixels; units are (n,) int64, equal for images of one unit.
    `earlier_pixels` are the pixels' digests by which earlier versions knew images, zeros where they are the same; None
    if all are the same.
    """

    files: np.ndarray
    pixels: np.ndarray
    units: np.ndarray
    earlier_pixels: np.ndarray | None = None

    def as_one_unit(self) -> "ImageDigests":
        """Return the same images as a single unit."""
        return replace(self, units=np.zeros_like(self.units))
