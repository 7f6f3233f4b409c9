"""Contract of an image source and what all sources share."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import DataConfig
from common.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# Where the images of a real federation lie; every client has a source of its own, which no server names.
OWN_IMAGES = "clients"


@dataclass(frozen=True)
class Entries:
    """All entries of a source in a fixed order, training entries first; images stay encoded.

    Attributes:
        images: n rows, column `image` with rows {"bytes": bytes | None, "path": str | None}.
        labels: (n,) int64 index into `classes`; -1 if there is none, and `label_faults` says why.
        num_train: The first so many entries are for training; the rest is the source's own test set.
        classes: Class names.
        item_keys: (n,) S32 that changes when that one item changes; None if only all change together.
        units: Privacy unit of each entry, such as a patient; "" is a unit of its own.
        clients: Natural client of each entry; "" belongs to none.
        label_faults: Row -> why it has no label.
        root: Folder that `place` shows paths from.
        parts: What the training and the test part are called where entries have no file.
    """

    images: "Dataset"
    labels: np.ndarray
    num_train: int
    classes: tuple[str, ...]
    item_keys: np.ndarray | None = None
    units: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    label_faults: Mapping[int, str] = field(default_factory=dict)
    root: str = ""
    parts: tuple[str, str] = ("the training part", "the test part")

    def place(self, row: int) -> str:
        """The file of an entry, seen from the source; else its number, from 0, and its part."""
        path = self.images[row]["image"]["path"]
        if path and self.root and Path(path).is_relative_to(self.root):
            return str(Path(path).relative_to(self.root))
        if path:
            return str(path)
        own, name = (row, self.parts[0]) if row < self.num_train else (row - self.num_train, self.parts[1])
        return f"image number {own} of {name}"


@dataclass(frozen=True)
class ImageSource:
    """Labelled images, read when they are first needed.

    Attributes:
        name: What the user called it.
        fingerprint: Hex digest that changes when any of its files changes.
        load: Reads it; use `entries`, which does so once.
        place: Where it lies: two sources of one name at two places are two sources.
    """

    name: str
    fingerprint: str
    load: Callable[[], Entries]
    place: str = ""

    @cached_property
    def entries(self) -> Entries:
        """All entries, read on first use.

        Raises:
            DataError: The files are damaged or do not hold what they should.
        """
        return self.load()


def refuse_path(config: DataConfig, why: str) -> None:
    """Refuse `data.path` where the source needs none.

    Raises:
        DataError: `data.path` is set.
    """
    if config.path:
        raise DataError(f"data.path does not go with data.source={config.source!r}: {why}")


def first_folder(path: str, usual: Sequence[str | Path], wanted: Sequence[str], advice: str) -> Path:
    """The first folder that holds all wanted files.

    Args:
        path: The only folder to look in, if not empty.
        usual: Folders to look in otherwise.
        wanted: File names.
        advice: What to do if none does.

    Raises:
        DataError: None does; says where it looked.
    """
    folders = [Path(path)] if path else [Path(folder) for folder in usual]
    for folder in folders:
        if all((folder / name).is_file() for name in wanted):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(f"missing {', '.join(wanted)}\n  looked in: {looked}\n  {advice}")


def file_keys(files: Iterable[Path]) -> np.ndarray:
    """(n,) S32, one key a file: changes with its path, the target of a link, its size and its time."""
    keys = []
    for file in files:
        try:
            state = file.stat()
            text = f"{file.absolute()}\0{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
        except (OSError, ValueError):  # a table may hold what is no path at all
            text = f"{file.absolute()}\0missing"
        keys.append(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    return np.array(keys, dtype="S32")


def fingerprint_of(files: Iterable[Path], *more: object) -> str:
    """Hex digest over the keys of files, and whatever else decides what is read."""
    return hashlib.sha256(file_keys(files).tobytes() + repr(more).encode("utf-8", "surrogateescape")).hexdigest()


def image_rows(cells: Sequence[Mapping[str, Any]]) -> "Dataset":
    """Encoded images as a data set: rows {"bytes": bytes | None, "path": str | None}."""
    import pyarrow as pa
    from datasets import Dataset, Features, Image
    from datasets.table import InMemoryTable

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = Features({"image": Image(decode=False)})
    table = pa.table({"image": pa.array(list(cells), type=kind)})
    return Dataset(InMemoryTable(table.cast(features.arrow_schema)))


def encoded_rows(arrays: Sequence[np.ndarray]) -> "Dataset":
    """Arrays of pixels, (h, w) or (h, w, 3) uint8 each, as a data set of PNG files."""
    from PIL import Image

    cells = []
    for array in arrays:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG", compress_level=1)
        cells.append({"bytes": stream.getvalue(), "path": None})
    return image_rows(cells)


def split_name(source: str) -> tuple[str, str]:
    """Return name and variant of `hub:name:variant`.

    Raises:
        DataError: There is no name.
    """
    _, name, variant = f"{source}::".split(":")[:3]
    if not name:
        raise DataError(f"data.source={source!r}: write a name after the colon; see `bract list sources`")
    return name, variant
