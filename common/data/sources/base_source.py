"""Contract of an image source with the helpers that all sources share."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.errors import DataError
from common.system.paths import closed_part

if TYPE_CHECKING:
    from datasets import Dataset

# The source of a run over real clients: each client has a source of its own, which no server names.
OWN_IMAGES = "clients"
_READ_AHEAD = 256  # encoded images in memory at once


@dataclass(frozen=True)
class Entries:
    """Entries of a source with encoded images, training entries first.

    Attributes:
        images: n rows, column `image` with rows {"bytes": bytes | None, "path": str | None}.
        labels: (n,) int64 index into `classes`; -1 if there is none, and `label_faults` says why.
        num_train: Number of training entries; the rest is the source's own test set.
        classes: Class names.
        item_keys: (n,) S32, each changes when its item changes; None if only all of them change together.
        units: Privacy unit of each entry, such as a patient; an entry with "" is a unit of its own.
        clients: Client that the source names for each entry; "" for no client.
        label_faults: Row -> why it has no label.
        root: Folder that `place` shows paths from.
        parts: Names of the training and the test part, for entries without a file.
        class_remarks: Where the source and `data.classes` differ, for the holder's own terminal.
        fault: Why the entries must not be used, found only by reading them; empty if they may.
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
    class_remarks: tuple[str, ...] = ()
    fault: str = ""

    def place(self, row: int) -> str:
        """Return an entry's relative file or its number in its part."""
        path = self.images[row]["image"]["path"]
        if path and self.root and Path(path).is_relative_to(self.root):
            return str(Path(path).relative_to(self.root))
        if path:
            return str(path)
        number, part = (row, self.parts[0]) if row < self.num_train else (row - self.num_train, self.parts[1])
        return f"image number {number} of {part}"

    def cells(self, rows: np.ndarray) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield row and encoded image, with a few hundred in memory at once."""
        for start in range(0, len(rows), _READ_AHEAD):
            block = rows[start : start + _READ_AHEAD].tolist()
            yield from zip(block, self.images[block]["image"], strict=True)


@dataclass(frozen=True)
class ImageSource:
    """Labelled images, read when they are first needed.

    The fingerprint is a hex digest that changes when any of the source's files changes. Use `entries`, which calls
    `load` once. Sources of one name at two places are different.

    Attributes:
        not_read: A phrase on each kind of thing that is left out.
        fault: Why the source cannot be used; empty if it can.
        doubt: Why its folders may be no classes; a class list that names some of them settles it.
        notes: How a table was read, for the holder's own terminal.
        is_relabelled: Whether the entries are under a class list of the run.
        is_joined: Whether the client has joined, so that no fault of its entries may be told.
    """

    name: str
    fingerprint: str
    load: Callable[[], Entries]
    place: str = ""
    not_read: tuple[str, ...] = ()
    fault: str = ""
    doubt: str = ""
    notes: tuple[str, ...] = ()
    is_relabelled: bool = False
    is_joined: bool = False

    @cached_property
    def entries(self) -> Entries:
        """Entries of the source, read on first use.

        Raises:
            DataError: The files are damaged or do not hold what they should.
        """
        entries = self.load()
        self.refuse_fault(entries.fault)
        return entries

    def refuse_fault(self, fault: str) -> None:
        """Refuse entries with a fault, unless a server would learn of it.

        Raises:
            DataError: There is a fault, and the client has not joined.
        """
        if fault and not self.is_joined:
            raise DataError(fault)

    def remarks(self) -> list[str]:
        """Return the lines on what is left out.

        They are for the holder's own terminal.

        Raises:
            DataError: The entries cannot be read.
        """
        lines = [f"Not read: {'; '.join(self.not_read)}"] if self.not_read else []
        # Reading the entries takes seconds, and without a class list nothing can differ from it.
        return lines + [f"Classes: {row}" for row in (self.entries.class_remarks if self.is_relabelled else ())]


def refuse_path(config: DataConfig, why: str) -> None:
    """Refuse `data.path` where the source needs none.

    Raises:
        DataError: `data.path` is set.
    """
    if config.path:
        raise DataError(f"data.path does not go with data.source={config.source!r}: {why}")


def refuse_closed(path: Path, config: DataConfig) -> None:
    """Refuse a file or folder that this user may not read.

    Raises:
        DataError: It is there and closed to this user, or a folder above it is.
    """
    if closed := closed_part(path):
        raise DataError(f"data.source={config.source!r}: {closed_line(closed)}")


def closed_line(place: Path) -> str:
    """Return the line about a file or folder that this user may not read."""
    return f"{place} cannot be read (permission denied): give this user the right to read it, or take it out"


def closed_among(files: Iterable[Path]) -> str:
    """Return a line about files that this user may not read.

    It is empty if there are none.
    """
    # A table may hold text that is not a path at all.
    hidden = (closed_part(file) for file in files if "\0" in str(file) or not os.access(file, os.R_OK))
    closed = [place for place in dict.fromkeys(hidden) if place is not None]
    more = f" ({len(closed) - 1} more are closed too)" if len(closed) > 1 else ""
    return f"{closed_line(closed[0])}{more}" if closed else ""


def first_folder(path: str, usual: Sequence[str | Path], wanted: Sequence[str], advice: str) -> Path:
    """Return the first folder that holds all wanted files.

    A `path` that is not empty is the only folder to look in; `advice` tells the user what to do without the files.

    Raises:
        DataError: No folder holds them; the message lists the folders.
    """
    folders = [Path(path)] if path else [Path(folder) for folder in usual]
    for folder in folders:
        if all((folder / name).is_file() for name in wanted):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(f"missing {', '.join(wanted)}\n  looked in: {looked}\n  {advice}")


def file_keys(files: Iterable[Path]) -> np.ndarray:
    """Return a key per file, (n,) S32, of path, link target, size and time."""
    keys = []
    for file in files:
        try:
            state = file.stat()
            text = f"{file.absolute()}\0{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
        # A table may hold text that is not a path at all; that row alone is then at fault.
        except (OSError, ValueError):
            text = f"{file.absolute()}\0missing"
        keys.append(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    return np.array(keys, dtype="S32")


def fingerprint_of(files: Iterable[Path], *more: object) -> str:
    """Return a hex digest over the keys of files and other values."""
    return hashlib.sha256(file_keys(files).tobytes() + repr(more).encode("utf-8", "surrogateescape")).hexdigest()


def image_rows(cells: Sequence[Mapping[str, Any]]) -> "Dataset":
    """Return a data set of encoded images, each with `bytes` and `path`."""
    import pyarrow as pa
    from datasets import Dataset, Features, Image
    from datasets.table import InMemoryTable

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = Features({"image": Image(decode=False)})
    table = pa.table({"image": pa.array(list(cells), type=kind)})
    return Dataset(InMemoryTable(table.cast(features.arrow_schema)))


def encoded_rows(arrays: Iterable[np.ndarray]) -> "Dataset":
    """Return PNG files of pixels, (h, w) or (h, w, 3) uint8 each."""
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
