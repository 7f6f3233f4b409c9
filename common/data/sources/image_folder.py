"""Folders of images with one sub-folder per class."""

import os
from pathlib import Path

import numpy as np

from common.config.sections import DataConfig
from common.data.decoding import IMAGE_SUFFIXES
from common.data.sources.base_source import (
    Entries,
    ImageSource,
    closed_among,
    file_keys,
    fingerprint_of,
    image_rows,
    refuse_path,
)
from common.errors import DataError

_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_ClassFiles = list[tuple[Path, str]]  # file, class name


def open_folder(config: DataConfig) -> ImageSource:
    """Open a folder with one sub-folder per class.

    The class folders may be inside train/ and test/. Every file with an image's suffix below a class folder is an
    entry, also a damaged one. Files and folders whose name begins with a dot are left out.

    Raises:
        DataError: The folder does not exist, holds no images, or has other parts than train/ and test/.
    """
    root = Path(config.source)
    if not root.is_dir():
        raise DataError(f"data.source={config.source!r}: there is no such folder")
    refuse_path(config, "name the folder with data.source alone")
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    _refuse_other_parts(root, has_parts)
    errors: list[OSError] = []
    parts = [_class_files(part, errors) for part in ([root / "train", root / "test"] if has_parts else [root])]
    # Left out in silence, a closed folder would be a class or a patient that is not there.
    closed = closed_among([*(Path(error.filename) for error in errors), *(file for part in parts for file, _ in part)])
    fault = f"data.source={config.source!r}: {closed}" if closed else ""
    if not parts[0] and fault:
        raise DataError(fault)
    if not parts[0]:
        where = f"{config.source}/train" if has_parts else config.source
        raise DataError(
            f"data.source={config.source!r}: no images found in {where}\n  expected one sub-folder per class, with "
            f"files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    fingerprint = fingerprint_of([file for part in parts for file, _ in part], root.resolve(), len(parts[0]))
    return ImageSource(root.name or str(root), fingerprint, lambda: _load(root, parts), str(root.resolve()), fault)


def _refuse_other_parts(root: Path, has_parts: bool) -> None:
    folders = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    # Read as classes, the parts of a data set would make a classifier of parts.
    if folders and not has_parts and set(folders) <= _SPLIT_NAMES:
        raise DataError(
            f"data.source={str(root)!r} holds {', '.join(folders)}: Bract reads train/ and test/ together, or one "
            f"folder per class\n  name one part, such as {root / folders[0]}, or rename the parts to train and test"
        )


def _load(root: Path, parts: list[_ClassFiles]) -> Entries:
    files = [item for part in parts for item in part]
    classes = tuple(sorted({name for _, name in files}))
    number = {name: index for index, name in enumerate(classes)}
    return Entries(
        images=image_rows([_cell(file) for file, _ in files]),
        labels=np.array([number[name] for _, name in files], dtype=np.int64),
        num_train=len(parts[0]),
        classes=classes,
        item_keys=file_keys(file for file, _ in files),
        root=str(root),
    )


def _cell(file: Path) -> dict[str, object]:
    """Return the path of a file or its bytes."""
    name = str(file)
    # Names that are not UTF-8 cannot be stored in an Arrow table.
    try:
        name.encode()
    except UnicodeEncodeError:
        content = file.read_bytes() if file.is_file() else None
        return {"bytes": content, "path": name.encode(errors="replace").decode()}
    return {"bytes": None, "path": name}


def _class_files(root: Path, errors: list[OSError]) -> _ClassFiles:
    """Return image files and their class, in name order, links included."""
    return [
        (file, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in _images_below(folder, errors)
    ]


def _images_below(folder: Path, errors: list[OSError]) -> list[Path]:
    images = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        # Changing the list in place keeps `os.walk` out of hidden folders.
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(images)
