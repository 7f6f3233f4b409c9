"""Picture of an image with the areas that speak for a class."""

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Largest share of the colour in the picture.
_STRENGTH = 0.75
# Widths of the gap between the two squares that make a side.
_GAP = 40


def draw_overlay(picture: "Image", heat: np.ndarray) -> "Image":
    """Return a picture of an image beside the same image with its map.

    The largest value of the map has the strongest colour. A map of zeros colours nothing.

    Args:
        picture: Square image.
        heat: Map (h, w) of values of at least 0, for the same square.
    """
    from matplotlib import colormaps
    from PIL import Image

    side = picture.width
    peak = float(heat.max())
    scaled = heat / peak if peak > 0 else np.zeros_like(heat)
    smooth = Image.fromarray(scaled.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    share = np.asarray(smooth)[:, :, None].clip(0, 1)
    # Colours of the map on a gray image, so that none of the image's own is taken for heat.
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[:, :, None]
    colour = 255 * colormaps["plasma"](share[:, :, 0])[:, :, :3]
    mixed = (1 - _STRENGTH * share) * gray + _STRENGTH * share * colour
    both = Image.new("RGB", (2 * side + side // _GAP, side), "white")
    both.paste(picture.convert("RGB"), (0, 0))
    both.paste(Image.fromarray(mixed.round().astype(np.uint8)), (both.width - side, 0))
    return both


def as_png(picture: "Image") -> bytes:
    """Return a picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
