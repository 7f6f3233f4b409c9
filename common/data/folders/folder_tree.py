"""Tree of a folder, with its images told from other files by content."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.data.image_formats import HEAD_BYTES, IMAGE_SUFFIXES, foreign_of, format_of
from common.system.paths import holds_results

# Folders that systems and archives put beside one's own. Some of them hold thumbnails.
_OF_SYSTEMS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
# Catalogues of programs, which hold previews, and files that cameras and programs write beside an image.
_CATALOGUES = (".lrdata", ".photoslibrary", ".aplibrary", ".cocatalog", ".thumbnails")
_PREVIEWS = {".thm", ".lrprev"}
# Labels often lie beside the images in such files, one for each: opening all of them would take seconds.
_TEXTS = {".txt", ".csv", ".json", ".xml"}

# What stands for the content of a folder that Bract wrote.
RESULTS = "results of an earlier run"
# What stands for `scan_mask.png` and the like, where `scan.png` lies beside it.
MASK = "masks of images beside them"
_MASK = re.compile(r"(?P<image>.+?)[ _.-]*(?:mask|masks|seg|segmentation|groundtruth|gt)(?:[ _.-]?\d+)?", re.IGNORECASE)
# A file that iCloud has moved away leaves a hidden one of this suffix.
_AWAY = ".icloud"


@dataclass(frozen=True)
class Folder:
    """A folder with the images, files and folders directly in it.

    Attributes:
        path: Path of the folder, through links.
        images: Files with an image's suffix or content, in name order.
        others: Suffix of each other file, the name of its format, or `MASK`.
        folders: Folders in it, in name order; links are followed.
        fault: Why its content cannot be listed; empty if it can.
        loops: Names of links that lead back to a folder above.
    """

    path: Path
    images: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    folders: tuple["Folder", ...] = ()
    fault: str = ""
    loops: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder itself."""
        return self.path.name

    @cached_property
    def count(self) -> int:
        """Number of images in it, at any depth."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    @cached_property
    def filled(self) -> tuple["Folder", ...]:
        """Folders directly in it that hold images, at any depth."""
        return tuple(folder for folder in self.folders if folder.count)

    @property
    def holds_folders(self) -> bool:
        """True where most of its images lie in folders of their own."""
        return self.count > 2 * len(self.images)

    def walk(self) -> Iterator["Folder"]:
        """Yield the folder and all folders below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def all_images(self) -> list[Path]:
        """Return the images at any depth, in path order."""
        return sorted(file for folder in self.walk() for file in folder.images)


def read_tree(root: Path) -> Folder:
    """Return the tree below a folder, without what is hidden.

    No image is decoded. A file with an image's suffix is an image, also a damaged one. Of any other file the first
    bytes are read.
    """
    return _read(root, frozenset())


def _read(path: Path, above: frozenset[tuple[int, int]]) -> Folder:
    try:
        state = path.stat()
        items = sorted(os.scandir(path), key=lambda item: item.name)
    except OSError as error:
        return Folder(path, fault=error.strerror or type(error).__name__)
    # Pictures of an earlier run are not images to train on.
    if holds_results([item.name for item in items]):
        return Folder(path, others=(RESULTS,))
    above |= {(state.st_dev, state.st_ino)}
    images, others, folders, loops = [], [], [], []
    for item in items:
        if item.name.startswith(".") or _is_of_system(item.name.casefold()):
            others += [_kind(path / item.name) or ""] if item.name.endswith(_AWAY) else []
            continue
        place = path / item.name
        if not _is_folder(item):
            kind = _kind(place)
            if kind is None:
                images.append(place)
            else:
                others.append(kind)
        # A link to a folder above would be followed for ever.
        elif item.is_symlink() and _identity(place) in above:
            loops.append(item.name)
        else:
            folders.append(_read(place, above))
    masks = _masks(images)
    images = [file for file in images if file not in masks]
    return Folder(path, tuple(images), (*others, *[MASK] * len(masks)), tuple(folders), loops=tuple(loops))


def _masks(images: Sequence[Path]) -> set[Path]:
    """Return the files that are masks of images beside them, by their names."""
    stems = {file.stem for file in images}
    return {file for file in images if (match := _MASK.fullmatch(file.stem)) and match["image"] in stems}


def _is_of_system(name: str) -> bool:
    return name in _OF_SYSTEMS or name.endswith(_CATALOGUES)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _kind(file: Path) -> str | None:
    """Return a file's suffix or foreign format, None for an image."""
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    # They are JPEG by content, and would be a second image of the same scene.
    if suffix in _PREVIEWS:
        return suffix
    head = b"" if suffix in _TEXTS else _head(file)
    if foreign := foreign_of(suffix, head):
        return foreign.name
    return None if format_of(head) else suffix or "without suffix"


def _head(file: Path) -> bytes:
    try:
        # Opening a pipe or a device could block for ever.
        if not file.is_file():
            return b""
        with file.open("rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""
