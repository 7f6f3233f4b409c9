"""Folders of images with one sub-folder per class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config.sections import DataConfig
from common.data.folders.folder_tree import RESULTS, Folder, read_tree
from common.data.folders.layout import ClassFolder, Layout, read_layout
from common.data.folders.name_labels import advice_on_names
from common.data.folders.similar_names import alike_names, nearest
from common.data.folders.unread import TABLE_ADVICE, TABLES, describe_faults, describe_unread
from common.data.image_formats import FORMATS
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

_HALF_COPIED = (
    "\n  if datasets saved this folder, its dataset_dict.json or state.json is missing: copy or save it again"
)
_ClassFiles = list[tuple[Path, str]]  # file, class name


def open_folder(config: DataConfig) -> ImageSource:
    """Open a folder with one sub-folder per class.

    The class folders may be inside parts, such as train/ and test/. Every file below a class folder with an image's
    suffix or content is an entry, also a damaged one. Files and folders whose name begins with a dot are left out.

    Raises:
        DataError: The folder does not exist.
    """
    root = Path(config.source)
    if not root.is_dir():
        raise DataError(f"data.source={config.source!r}: there is no such folder{_advice_on_place(config.source)}")
    refuse_path(config, "name the folder with data.source alone")
    tree = read_tree(root)
    layout = read_layout(tree, config.validation)
    parts = [_class_files(layout.train), _class_files(layout.test)]
    fingerprint = fingerprint_of([file for part in parts for file, _ in part], root.resolve(), len(parts[0]))
    return ImageSource(
        root.name or str(root),
        fingerprint,
        lambda: _load(root, parts),
        str(root.resolve()),
        not_read=describe_unread(tree, layout),
        fault=_fault(config.source, tree, layout),
        doubt=_doubt(config.source, tree, layout),
    )


def _advice_on_place(source: str) -> str:
    """Return what to name instead of a folder that does not exist."""
    if "://" in source:
        return "\n  images are read from folders of this machine: mount or download them, and name the path alone"
    if source.startswith("~"):
        return "\n  ~ is not replaced in quotes: name the whole path"
    if source.startswith("$") or "%" in source:
        return "\n  variables are not replaced here: name the whole path"
    above = Path(source).absolute().parent
    while not above.is_dir():
        above = above.parent
    try:
        near = nearest(Path(source).name, os.listdir(above)) if above == Path(source).absolute().parent else None
    except OSError:
        near = None
    return f"\n  nearest: {above / near}" if near else f"\n  {above} is there, and the rest of this path is not"


def _doubt(source: str, tree: Folder, layout: Layout) -> str:
    if layout.doubt:
        return f"data.source={source!r}: {layout.doubt}{_advice_on_tables(tree)}"
    alike = alike_names(row.name for row in (*layout.train, *layout.test) if row.folder.count)
    return alike and f"data.source={source!r}: {alike}"


def _advice_on_tables(tree: Folder) -> str:
    found = {kind for folder in tree.walk() for kind in folder.others}
    if ".arrow" in found:
        return _HALF_COPIED
    tables = sorted(found & set(TABLES))
    return f"\n  {TABLE_ADVICE}; found here: {', '.join(tables)}" if tables else ""


def _fault(source: str, tree: Folder, layout: Layout) -> str:
    if locked := describe_faults(tree):
        return f"data.source={source!r}: these folders cannot be listed, so their images would be missing: {locked}"
    if closed := closed_among(file for row in (*layout.train, *layout.test) for file in row.folder.all_images()):
        return f"data.source={source!r}: {closed}"
    if any(row.folder.count for row in layout.train) or layout.doubt:
        return ""
    if tree.others == (RESULTS,):
        return (
            f"data.source={source!r} is a folder of results that Bract wrote: after `bract data partition` name one "
            "client's folder in it, such as client-00000"
        )
    left = "; ".join(describe_unread(tree, layout))
    lines = [f"data.source={source!r}: no images found in the sub-folders of {source}"]
    lines.append(f"expected one sub-folder per class, with images ({', '.join(FORMATS)}; the content decides)")
    if left:
        lines.append(f"not read: {left}")
    if advice := advice_on_names(tree.images):
        lines.append(advice)
    elif tree.images:
        lines.append(f"if these images are of one class, name the folder above: {tree.path.parent}")
    return "\n  ".join(lines) + (_HALF_COPIED if any(".arrow" in folder.others for folder in tree.walk()) else "")


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
        return {"bytes": _content(file), "path": name.encode(errors="replace").decode()}
    return {"bytes": None, "path": name}


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    # A file that is closed or gone is a bad image of its own row, as one with another name is.
    except OSError:
        return b""


def _class_files(folders: Sequence[ClassFolder]) -> _ClassFiles:
    """Return image files and their class, in name order, links included."""
    return [(file, row.name) for row in folders for file in row.folder.all_images()]
