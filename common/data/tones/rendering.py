"""Rendering of stored values as the 8-bit images that models are trained on.

It comes after the canonical decode and changes no fingerprint: the settings are public and may differ between runs, and
an image must stay the same unit in all of them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.listed_values import listed_window
from common.config.sections import DataConfig
from common.data.decoding import StoredImage

if TYPE_CHECKING:
    from PIL.Image import Image

# Bits of a container, of which the canonical decode keeps the upper 8.
FULL_DEPTH = 16
_NEUTRAL: dict[str, Any] = {"bit-depth": FULL_DEPTH, "gray-window": None, "background": "keep"}


@dataclass(frozen=True)
class Tones:
    """Choice of how stored values become 8 bits.

    Attributes:
        bit_depth: Bits that are used of values of more than 8 bits; larger values become white.
        gray_window: Stored values of gray images that become black and white; None for the whole depth.
        background: `white` or `black` under transparent pixels, or `keep` for the stored colour.
    """

    bit_depth: int
    gray_window: tuple[int, int] | None
    background: str

    @property
    def neutral(self) -> bool:
        """True if images are rendered as by versions without these settings."""
        return not self.as_json()

    def as_json(self) -> dict[str, Any]:
        """Return what differs from neutral tones, by the names of the settings."""
        window = None if self.gray_window is None else list(self.gray_window)
        given = {"bit-depth": self.bit_depth, "gray-window": window, "background": self.background}
        return {name: value for name, value in given.items() if value != _NEUTRAL[name]}


def tones_of(data: DataConfig) -> Tones:
    """Return the tones that a run's settings ask for."""
    return Tones(data.bit_depth, listed_window(data.gray_window), data.background)


def render(stored: StoredImage, tones: Tones) -> "Image":
    """Return an image as models see it.

    The mode is L or RGB, with 8 bits per channel. Every image that `decode` can read is rendered under every setting,
    so that no setting tells which images there are. Values of more than 8 bits lose all but the upper 8 of the bits
    that are used. A window counts in stored values, and for gray images alone. White that is stored as 0 is white at
    any depth.
    """
    image = _in_eight_bits(stored, tones)
    if tones.background == "keep":
        return image
    alpha = opacity_of(stored, tones.bit_depth)
    return image if alpha is None else _over(image, alpha, 255 if tones.background == "white" else 0)


def opacity_of(stored: StoredImage, bit_depth: int) -> np.ndarray | None:
    """Return the opacity of each pixel, (h, w) uint8.

    0 is transparent. None stands for a file without opacity.
    """
    if stored.opacity is not None:
        return _upper_bits(stored.opacity, min(stored.bits, bit_depth))
    image, clear = stored.pixels, stored.pixels.info.get("transparency")
    if stored.values is not None:
        # One stored colour stands for transparent pixels.
        if clear is None:
            return None
        same = stored.values == np.asarray(clear)
        return np.where(same.all(axis=-1) if same.ndim == 3 else same, 0, 255).astype(np.uint8)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA"):
        return np.asarray(image.getchannel("A"))
    if clear is not None and image.mode in ("1", "L", "P", "RGB"):
        return np.asarray(image.convert("RGBA").getchannel("A"))
    return None


def _in_eight_bits(stored: StoredImage, tones: Tones) -> "Image":
    from PIL import Image

    window, values = tones.gray_window, stored.values
    if values is None:
        image = stored.canonical
        # Black and white have no shades that a window could choose from.
        if window is None or image.mode != "L" or stored.pixels.mode == "1":
            return image
        table = _windowed(np.arange(256), *window)
        # Pillow has turned white that is stored as 0: the window counts in values of before.
        return image.point((255 - table[::-1] if stored.white_is_zero else table).tolist())
    if window is not None and values.ndim == 2:
        scaled = _windowed(values, *window)
    else:
        scaled = _upper_bits(values, min(stored.bits, tones.bit_depth))
    return Image.fromarray(255 - scaled if stored.white_is_zero else scaled)


def _upper_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the upper 8 of the bits that are used, any shape, uint8."""
    if values.dtype == np.int16:
        values = values.astype(np.int32) + (1 << bits - 1)
    return np.asarray(np.clip(values >> bits - 8, 0, 255).astype(np.uint8))


def _windowed(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return values of a window spread over 0 to 255, any shape, uint8."""
    # Whole numbers alone: every machine must round alike.
    inside = np.clip(values.astype(np.int32), low, high) - low
    return np.asarray(((inside * 255 + (high - low) // 2) // (high - low)).astype(np.uint8))


def _over(image: "Image", alpha: np.ndarray, ground: int) -> "Image":
    from PIL import Image

    colour = np.asarray(image).astype(np.uint16)
    share = alpha.astype(np.uint16)
    if colour.ndim == 3:
        share = share[..., None]
    return Image.fromarray(((colour * share + ground * (255 - share) + 127) // 255).astype(np.uint8))
