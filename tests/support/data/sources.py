"""Small folders of images, and what a test looks at in an opened source."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.decoding import decode
from common.data.sources.base_source import Entries, ImageSource

Open = Callable[..., ImageSource]


def write_png(file: Path, shade: int = 0, side: int = 5) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), shade).save(file)


def two_classes(root: Path) -> Path:
    for shade, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png"), start=1):
        write_png(root / name, shade)
    return root


def pixels_of(entries: Entries, row: int) -> np.ndarray:
    return np.asarray(decode(entries.images[row]["image"]))


def shades_of(source: ImageSource) -> list[int]:
    return [int(pixels_of(source.entries, row)[0, 0]) for row in range(source.entries.num_train)]


def num_test(source: ImageSource) -> int:
    return len(source.entries.labels) - source.entries.num_train
