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


def value_facts(stored: StoredImage) -> ValueFacts:
    """Return the facts about one image."""
    values, pixels = stored.values, np.asarray(stored.canonical)
    shown = pixels if values is None else values
    if values is None and stored.white_is_zero and shown.ndim == 2:
        # Back to what the file stores, as for values of more than 8 bits.
        shown = 255 - shown
    lows, highs = shown.min(axis=(0, 1)), shown.max(axis=(0, 1))
    return ValueFacts(
        depths=-stored.bits if stored.signed else stored.bits,
        lows=int(lows.min()),
        highs=int(highs.max()),
        constant=bool((lows == highs).all()),
        transparency=_transparency(stored, pixels if values is None else values),
        plain=values is None or not (stored.white_is_zero or stored.bits < 16),
    )


def _transparency(stored: StoredImage, colour: np.ndarray) -> int:
    alpha = opacity_of(stored, stored.bits)
    if alpha is None or alpha.min() == 255:
        return OPAQUE
    below = colour[alpha == 0]
    return BLACK_BELOW if below.size and not below.any() else TRANSPARENT
