"""Facts about the values that one image's file stores."""

from dataclasses import dataclass

import numpy as np

from common.data.decoding import StoredImage
from common.data.tones.rendering import opacity_of

# Values of `ValueFacts.transparency`.
OPAQUE, TRANSPARENT, BLACK_BELOW = 0, 1, 2


@dataclass(frozen=True)
class ValueFacts:
    """Facts that a scan keeps about one image's stored values.

    Attributes:
        depths: Bits of a channel by the file's header, negative if the values have a sign.
        lows: Smallest value of all channels but opacity, as the file stores it.
        highs: Largest value.
        constant: True if all pixels are equal.
        transparency: `OPAQUE`, `TRANSPARENT`, or `BLACK_BELOW` if all fully transparent pixels are black.
        plain: True if neutral tones render the image as the canonical decode does.
    """

    depths: int
    lows: int
    highs: int
    constant: bool
    transparency: int
    plain: bool


def value_facts(stored: StoredImage, canonical: np.ndarray) -> ValueFacts:
    """Return the facts about one image.

    `canonical` holds its canonical pixels, (h, w) or (h, w, 3) uint8.
    """
    lows, highs = _extremes(stored, canonical)
    return ValueFacts(
        depths=-stored.bits if stored.signed else stored.bits,
        lows=int(lows.min()),
        highs=int(highs.max()),
        constant=bool((lows == highs).all()),
        transparency=_transparency(stored, canonical),
        plain=stored.values is None or not (stored.white_is_zero or stored.bits < 16),
    )


def _extremes(stored: StoredImage, canonical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest value of each channel."""
    if stored.values is not None:
        return stored.values.min(axis=(0, 1)), stored.values.max(axis=(0, 1))
    channels = 1 if canonical.ndim == 2 else canonical.shape[2]
    # Over whole rows first. NumPy is ten times slower where each step takes the few values of one pixel.
    rows = canonical.reshape(len(canonical), -1)
    lows, highs = rows.min(axis=0).reshape(-1, channels).min(axis=0), rows.max(axis=0).reshape(-1, channels).max(axis=0)
    if stored.white_is_zero and channels == 1:
        # Back to what the file stores, as for values of more than 8 bits.
        return 255 - highs, 255 - lows
    return lows, highs


def _transparency(stored: StoredImage, canonical: np.ndarray) -> int:
    alpha = opacity_of(stored, stored.bits)
    if alpha is None or alpha.min() == 255:
        return OPAQUE
    colour = canonical if stored.values is None else stored.values
    below = colour[alpha == 0]
    return BLACK_BELOW if below.size and not below.any() else TRANSPARENT
