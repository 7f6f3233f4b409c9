"""Images that a user names by files, folders and tables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from common.data.folders.folder_tree import RESULTS, read_tree
from common.data.folders.unread import describe_faults
from common.data.sources.base_source import Entries
from common.data.sources.datasets_library import is_saved, read_all_images
from common.data.sources.manifest import MANIFEST_SUFFIXES, read_images
from common.data.sources.tables.shards import refusal_of_missing, shards_of
from common.errors import DataError
from common.inference.images import Cell

FROM_STDIN = "-"


@dataclass(frozen=True)
class NamedImages:
    """Images with their names, read one by one.

    The number is that of all images, also of those that cannot be read.
    """

    number: int
    parts: tuple["list[Path] | Entries", ...]

    def __iter__(self) -> Iterator[tuple[str, Cell]]:
        return chain.from_iterable(map(_items, self.parts))


def _items(part: "list[Path] | Entries") -> Iterator[tuple[str, Cell]]:
    if isinstance(part, Entries):
        rows = np.arange(len(part.labels))
        yield from ((part.place(row), cell) for row, cell in part.cells(rows))
        return
    yield from ((str(file), {"bytes": None, "path": str(file)}) for file in part)


def name_images(paths: Iterable[str], lines: Iterable[str]) -> NamedImages:
    """Return the images that paths name.

    Args:
        paths: Files, folders, manifests, and `-` for a list of paths.
        lines: The list of paths, one a line, each of which may be a folder or a manifest too.

    Raises:
        DataError: A folder or a list has no images, or a manifest cannot be read.
    """
    parts: list[list[Path] | Entries] = []
    for path in paths:
        if path == FROM_STDIN:
            listed = [line.rstrip("\r\n") for line in lines]
            parts += [part for line in listed if line for part in _parts(Path(line))]
        else:
            parts += _parts(Path(path))
    number = sum(len(part.labels) if isinstance(part, Entries) else len(part) for part in parts)
    if not number:
        raise DataError("there are no images to classify: the list of paths is empty")
    return NamedImages(number, tuple(parts))


def _parts(path: Path) -> "list[list[Path] | Entries]":
    if path.is_dir():
        tree = read_tree(path)
        if locked := describe_faults(tree):
            raise DataError(f"{path}: these folders cannot be listed, so their images would be missing: {locked}")
        if tree.others == (RESULTS,):
            raise DataError(f"{path} is a folder of results that Bract wrote: name a folder of images in it")
        if is_saved(path):
            return [*read_all_images(path)]
        files = tree.all_images()
        # A table beside images says what they are: the images themselves are meant.
        if not files and (shards := shards_of(path)):
            if fault := refusal_of_missing(shards):
                raise DataError(fault)
            return [read_images(file) for file in shards]
        if not files:
            raise DataError(f"there are no images in {path}{_tables_in(path)}")
        return [files]
    # A name that is neither is a bad image of its own row.
    return [read_images(path) if path.name.lower().endswith(MANIFEST_SUFFIXES) else [path]]


def _tables_in(folder: Path) -> str:
    """Return what to name instead where a folder holds tables alone."""
    # A text file is more often a note than a table.
    suffixes = tuple(suffix for suffix in MANIFEST_SUFFIXES if suffix != ".txt")
    tables = sorted(file for file in folder.rglob("*") if file.name.lower().endswith(suffixes))
    return f": name the table itself, such as {tables[0]}" if tables else ""
