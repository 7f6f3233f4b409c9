"""Folders of images: one sub-folder a class, with or without train/ and test/."""

import os
from pathlib import Path

import numpy as np

from common.config.schema import DataConfig
from common.data.decoding import IMAGE_SUFFIXES
from common.data.sources.base_source import Entries, ImageSource, file_keys, fingerprint_of, image_rows
from common.errors import DataError

_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_Found = list[tuple[Path, str]]


def open_folder(config: DataConfig) -> ImageSource:
    """A folder with one sub-folder a class, optionally below train/ and test/.

    Every file with an image's suffix below a class folder is an entry, also a
    damaged one; what is hidden (a leading dot) is not looked at.

    Raises:
        DataError: There is no such folder, it holds no images, or its parts are not train/ and test/.
    """
    root = Path(config.source)
    if not root.is_dir():
        raise DataError(f"data.source={config.source!r}: there is no such folder")
    if config.path:
        raise DataError("data.path does not go with a folder: name the folder with data.source alone")
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    _refuse_other_parts(root, has_parts)
    found = [_class_files(part) for part in ([root / "train", root / "test"] if has_parts else [root])]
    if not found[0]:
        where = f"{config.source}/train" if has_parts else config.source
        raise DataError(
            f"data.source={config.source!r}: no images found in {where}\n  expected one sub-folder a class, with files "
            f"ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    files = [file for part in found for file, _ in part]
    fingerprint = fingerprint_of(files, root.resolve(), len(found[0]))
    return ImageSource(root.name or str(root), fingerprint, lambda: _load(root, found), str(root.resolve()))


def _refuse_other_parts(root: Path, has_parts: bool) -> None:
    inside = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    if inside and not has_parts and set(inside) <= _SPLIT_NAMES:
        raise DataError(
            f"data.source={str(root)!r} holds {', '.join(inside)}: Bract reads train/ and test/ together, or one "
            f"folder a class\n  name one part, such as {root / inside[0]}, or rename the parts to train and test"
        )


def _load(root: Path, found: list[_Found]) -> Entries:
    everything = [item for part in found for item in part]
    classes = tuple(sorted({name for _, name in everything}))
    number = {name: index for index, name in enumerate(classes)}
    return Entries(
        images=image_rows([_cell(file) for file, _ in everything]),
        labels=np.array([number[name] for _, name in everything], dtype=np.int64),
        num_train=len(found[0]),
        classes=classes,
        item_keys=file_keys(file for file, _ in everything),
        root=str(root),
    )


def _cell(file: Path) -> dict[str, object]:
    """A reference to a file; its content where the name is no UTF-8 and could not be stored."""
    name = str(file)
    try:
        name.encode()
    except UnicodeEncodeError:
        content = file.read_bytes() if file.is_file() else None
        return {"bytes": content, "path": name.encode(errors="replace").decode()}
    return {"bytes": None, "path": name}


def _class_files(root: Path) -> _Found:
    """Image files and their class, in name order; linked files and class folders are followed."""
    return [
        (file, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in _images_below(folder)
    ]


def _images_below(folder: Path) -> list[Path]:
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(here, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)
