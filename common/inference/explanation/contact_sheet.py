"""Contact sheet of images that show where a model fails."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.system.console import printable

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure
    from PIL.Image import Image

COLUMNS = 4
_LONGEST = 34


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture of the sheet with its lines of text.

    Attributes:
        picture: Image beside its map.
        place: Where the image is.
        label: Its true class.
        predicted: Its predicted class.
        probability: Probability of that class.
    """

    picture: "Image"
    place: str
    label: str
    predicted: str
    probability: float

    @property
    def text(self) -> str:
        """Two lines below the picture."""
        first = f"{self.predicted} {self.probability:.2f}"
        wrong = f", is {self.label}" if self.label != self.predicted else ", right"
        return f"{_short(first + wrong)}\n{_short(self.place)}"


def _short(text: str) -> str:
    shown = printable(text, keep="")
    # The end of a path says more than its beginning. A dollar sign would start a formula.
    return (shown if len(shown) <= _LONGEST else f"...{shown[3 - _LONGEST :]}").replace("$", r"\$")


def draw_sheet(title: str, parts: Sequence[tuple[str, Sequence[Tile]]]) -> bytes:
    """Return a PNG file with a block of tiles for each part."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    filled = [(name, tiles) for name, tiles in parts if tiles] or [("no image could be used", ())]
    lines = [max(1, -(-len(tiles) // COLUMNS)) for _, tiles in filled]
    figure = Figure(figsize=(3.2 * COLUMNS, 0.5 + sum(0.5 + 2.1 * number for number in lines)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    blocks = figure.subfigures(len(filled), 1, squeeze=False, height_ratios=[0.5 + 2.1 * number for number in lines])
    for block, (name, tiles), number in zip(blocks.flat, filled, lines, strict=True):
        block.suptitle(name, fontsize="medium")
        _draw_tiles(block, tiles, number)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()


def _draw_tiles(block: "SubFigure", tiles: Sequence[Tile], lines: int) -> None:
    for at, axes in enumerate(block.subplots(lines, COLUMNS, squeeze=False).flat):
        axes.set(xticks=[], yticks=[], frame_on=False)
        if at < len(tiles):
            axes.imshow(np.asarray(tiles[at].picture))
            axes.set_xlabel(tiles[at].text, fontsize="small")
