"""Data sets of the `datasets` library, saved to a folder or in memory."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, closed_among, fingerprint_of, refuse_path
from common.data.sources.labels import MISSING, label_names, numbered
from common.data.sources.tables.columns import cell_text, find_columns, find_groups, find_label
from common.data.sources.tables.parquet_tables import IMAGE_NAMES, column_names
from common.data.sources.tables.parts import Division, divide, on_both_sides
from common.data.sources.tables.shards import parts_of_shards, refusal_of_missing, shards_of
from common.errors import DataError
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 2  # raise it when the same files would give other labels, units or parts
_ALONE = ("",)  # the parts of a set without parts


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of a Dataset or a DatasetDict wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def open_library_set(
    config: DataConfig,
    name: str,
    load: Callable[[], Any],
    *,
    title: str,
    parts: Sequence[str],
    columns: Sequence[str],
    files: Iterable[Path],
    more: Sequence[object],
    place: str,
    fault: str = "",
) -> ImageSource:
    """Open a data set whose files are known and not yet read.

    Args:
        config: Settings, of which `validation` says how a validation part is used.
        name: See `ImageSource`.
        load: Returns a `Dataset`, or a mapping from each of the `parts` to one.
        title: Its name in messages.
        parts: Names of its parts.
        columns: Names of its columns.
        files: Files that the fingerprint follows.
        more: Further values that it follows.
        place: See `ImageSource`.
        fault: See `ImageSource`.
    """
    division = divide(parts, config.validation, title)
    return ImageSource(
        name,
        fingerprint_of(files, *more, FORMAT, division),
        lambda: entries_of(load(), title, division, config.class_names),
        place,
        not_read=division.not_read + find_groups(columns)[1],
        fault=fault or division.fault,
    )


def open_saved(config: DataConfig) -> ImageSource:
    """Open a folder that `datasets` saved to disk.

    Raises:
        DataError: `data.path` is set.
    """
    refuse_path(config, "name the saved folder with data.source alone")
    root = Path(config.source)
    listed = _stored_json(root / "dataset_dict.json").get("splits", list(_ALONE))
    parts = tuple(map(str, listed)) if isinstance(listed, list) else _ALONE
    features = _stored_json(root / (parts[0] if parts else "") / "dataset_info.json").get("features")
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return open_library_set(
        config,
        root.name,
        lambda: _load(root),
        title=str(root),
        parts=parts,
        columns=tuple(features) if isinstance(features, dict) else (),
        files=files,
        more=("saved",),
        place=str(root.resolve()),
        fault=closed_among(root.rglob("*")) or refusal_of_missing(files),
    )


def _stored_json(file: Path) -> dict[str, Any]:
    """Return what a file of `datasets` holds, nothing if it cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    # Who loads the set says that it is damaged or closed, or is silent once its client has joined.
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_sharded(folder: Path) -> bool:
    """Return whether a folder holds Parquet files in place of class folders."""
    return folder.is_dir() and bool(shards_of(folder))


def open_shards(config: DataConfig) -> ImageSource:
    """Open a folder of Parquet files, as the Hugging Face hub lays them out.

    The name of a file or of its folder says to which part it belongs. Where no file names one, all are for training.

    Raises:
        DataError: `data.path` is set, or the first file is damaged.
    """
    refuse_path(config, "name the folder of Parquet files with data.source alone")
    root = Path(config.source)
    files = shards_of(root)
    parts, fault = parts_of_shards(root, files), closed_among(files)
    return open_library_set(
        config,
        root.name,
        lambda: _load_shards(root, parts),
        title=str(root),
        parts=tuple(parts),
        columns=() if fault else column_names(files[0]),
        files=files,
        more=(root.resolve(), "shards"),
        place=str(root.resolve()),
        fault=fault or refusal_of_missing(files),
    )


def _load_shards(root: Path, parts: Mapping[str, list[Path]]) -> Any:
    from datasets import Dataset

    files = [file for part in parts.values() for file in part]
    for file in files[1:]:
        if set(column_names(file)) != set(column_names(files[0])):
            raise DataError(f"{file} has other columns than {files[0].name}: name one of them, or take one out")
    try:
        kept = str(cache_folder("tables"))
        return {part: Dataset.from_parquet([str(file) for file in own], cache_dir=kept) for part, own in parts.items()}
    except Exception as error:
        raise DataError(f"{root} holds Parquet files that cannot be read as one set ({type(error).__name__})") from None


def entries_of(data: Any, title: str, division: Division, listed: Sequence[str]) -> Entries:
    """Return the entries of the used parts of a data set.

    The image column is recognised by its type, the label as in a Parquet table. Columns of unit and client are used if
    the data set has them. A label that is among the `listed` classes is a class, whatever it says.

    Raises:
        DataError: There is no training part, no image column or no usable label column.
    """
    from datasets import concatenate_datasets

    parts = data if isinstance(data, Mapping) else {_ALONE[0]: data}
    train, test = ([parts[name] for name in names] for names in (division.train, division.test))
    num_train = sum(map(len, train))
    if division.fault or not num_train:
        raise DataError(division.fault or f"{title} has no rows to train on")
    if any(part.features != train[0].features for part in (*train, *test)):
        raise DataError(f"{title}: the parts {', '.join((*division.train, *division.test))} have different columns")
    rows = concatenate_datasets([*train, *test])
    image, label = _image_column(rows, title), _label_column(rows, title)
    labels, classes = _labels(rows, label, title, listed)
    groups, _ = find_groups([name for name in rows.column_names if name not in (image, label)])
    cells = {role: _cells(rows, column) for role, column in groups.items()}
    advice = "put all its rows into one part, or save the part to train on alone"
    shown = tuple(f"the part {' and '.join(names)}" for names in (division.train, division.test))
    return Entries(
        images=_undecoded(rows, image),
        labels=labels,
        num_train=num_train,
        classes=classes,
        units=cells.get("unit"),
        clients=cells.get("client"),
        label_faults=dict.fromkeys(np.flatnonzero(labels < 0).tolist(), "no label"),
        parts=(title, title) if division.train == _ALONE else (shown[0], shown[1]),
        fault=on_both_sides(cells.get("unit", ()), num_train, groups.get("unit", ""), title, advice),
    )


def read_all_images(root: Path) -> list[Entries]:
    """Read the images of a folder that `datasets` saved, without labels, by part.

    Raises:
        DataError: The folder is damaged or closed to this user, or has no column of images.
    """
    if closed := closed_among(root.rglob("*")):
        raise DataError(closed)
    data = _load(root)
    found = []
    for name, rows in data.items() if isinstance(data, Mapping) else [("", data)]:
        images, shown = _undecoded(rows, _image_column(rows, str(root))), f"the part {name}" if name else str(root)
        found.append(Entries(images, np.full(len(rows), -1, np.int64), len(rows), (), parts=(shown, shown)))
    return found


def _load(root: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(root))
    except Exception as error:
        raise DataError(
            f"{root} is not whole as datasets saved it ({type(error).__name__}): copy or save it again"
        ) from None


def _image_column(rows: "Dataset", title: str) -> str:
    from datasets import Image

    kinds = rows.features.items()
    columns = [name for name, kind in kinds if isinstance(kind, Image)] or [n for n, kind in kinds if _is_encoded(kind)]
    if len(columns) > 1 and (named := next((name for name in IMAGE_NAMES if name in columns), "")):
        return named
    if len(columns) != 1:
        raise DataError(
            f"{title} needs one column of images (datasets.Image), or one of them called image; its columns are "
            f"{', '.join(rows.column_names)}"
        )
    return str(columns[0])


def _is_encoded(kind: Any) -> bool:
    """Return whether a column of another type may hold encoded images."""
    return getattr(kind, "dtype", "") in ("binary", "large_binary") or (
        isinstance(kind, dict) and {"bytes", "path"} <= kind.keys()
    )


def _cells(rows: "Dataset", column: str) -> tuple[str, ...]:
    return tuple("" if (text := cell_text(value)) in MISSING else text for value in rows[column])


def _label_column(rows: "Dataset", title: str) -> str:
    from datasets import ClassLabel

    typed = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)]
    if label := find_label(rows.column_names, typed):
        return label
    if found := find_columns(rows.column_names, Path(title), ("label",)).get("label"):
        return found
    raise DataError(
        f"{title} needs a column of labels: one called label, or a ClassLabel; its columns are "
        f"{', '.join(rows.column_names)}"
    )


def _labels(rows: "Dataset", column: str, title: str, listed: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    kind, values = rows.features[column], rows[column][:]
    if names := getattr(kind, "names", None):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), tuple(names)
    if any(not isinstance(value, int | float | str | None) or isinstance(value, bool) for value in values):
        raise DataError(f"{title}: the values of {column} must be whole numbers or names")
    return numbered(label_names([cell_text(value) for value in values], listed))


def _undecoded(rows: "Dataset", column: str) -> "Dataset":
    from datasets import Image

    kept = rows.select_columns(column)
    kept = kept if column == "image" else kept.rename_column(column, "image")
    return kept.cast_column("image", Image(decode=False))
