"""Plot of the inversion demo."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDE = 2.9  # inches of one panel


@dataclass(frozen=True)
class Panel:
    """Image of the row.

    Attributes:
        pixels: (side, side, channels) in [0, 255], 1 or 3 channels.
        title: Up to two lines above the picture.
        below: Up to two lines under the picture; may be empty.
    """

    pixels: np.ndarray
    title: str
    below: str = ""


def draw_panels(file: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draw images side by side, each pixel as it is.

    Args:
        file: PNG to write.
        panels: From left to right.
        title: Title of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIDE * len(panels), _SIDE + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    figure.suptitle(_plain(title), fontsize=12)
    figure.savefig(file, dpi=110)


def _draw(axes: "Axes", panel: Panel) -> None:
    pixels = np.clip(panel.pixels / 255.0, 0.0, 1.0)
    if pixels.shape[2] == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    else:
        axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(_plain(panel.title), fontsize=11)
    axes.set_xlabel(_plain(panel.below), fontsize=10)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a dollar sign would start a formula
