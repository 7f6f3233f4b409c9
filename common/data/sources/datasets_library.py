"""Data sets of the `datasets` library, saved to a folder or in memory."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, closed_among, fingerprint_of, refuse_path
from common.data.sources.labels import MISSING, label_names, numbered
from common.data.sources.tables.columns import cell_text, find_columns
from common.data.sources.tables.parquet_tables import IMAGE_NAMES, PARQUET_SUFFIXES, column_names
from common.errors import DataError
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

_LABEL_NAMES = ("label", "labels", "fine_label")
_TEST_NAMES = ("test", "validation", "valid", "val")
_PART = re.compile(r"(train|test|validation|valid|val|dev)(ing)?(?![a-z])", re.IGNORECASE)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of a Dataset or a DatasetDict wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def open_saved(config: DataConfig) -> ImageSource:
    """Open a folder that `datasets` saved to disk.

    Raises:
        DataError: `data.path` is set.
    """
    refuse_path(config, "name the saved folder with data.source alone")
    root = Path(config.source)
    files = sorted(file for file in root.rglob("*") if file.is_file())
    fault = closed_among(root.rglob("*"))
    return ImageSource(root.name, fingerprint_of(files, "saved"), lambda: _load(root), str(root.resolve()), fault=fault)


def is_sharded(folder: Path) -> bool:
    """Return whether a folder holds Parquet files in place of class folders."""
    return folder.is_dir() and bool(_shards(folder))


def open_shards(config: DataConfig) -> ImageSource:
    """Open a folder of Parquet files, as the Hugging Face hub lays them out.

    The name of a file or of its folder says to which part it belongs. Where no file names one, all are for training.

    Raises:
        DataError: `data.path` is set.
    """
    refuse_path(config, "name the folder of Parquet files with data.source alone")
    root, files = Path(config.source), _shards(Path(config.source))
    return ImageSource(
        root.name,
        fingerprint_of(files, root.resolve(), "shards"),
        lambda: _load_shards(root, files),
        str(root.resolve()),
        fault=closed_among(files),
    )


def _shards(folder: Path) -> list[Path]:
    """Return a folder's Parquet files, none if it may be a folder of images."""
    try:
        return _listed_shards(folder)
    # Who reads folders of images names the one that is closed, or is silent once its client has joined.
    except OSError:
        return []


def _listed_shards(folder: Path) -> list[Path]:
    inner = [place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
    if any(place.name.lower() != "data" and not _PART.fullmatch(place.name) for place in inner):
        return []
    found = [
        sorted(file for file in place.iterdir() if file.suffix.lower() in PARQUET_SUFFIXES and file.is_file())
        for place in sorted(inner)
    ]
    # A table beside folders of images does not make them a set of shards.
    if not all(found):
        return []
    here = sorted(file for file in folder.iterdir() if file.suffix.lower() in PARQUET_SUFFIXES and file.is_file())
    return [*here, *(file for files in found for file in files)]


def _load_shards(root: Path, files: list[Path]) -> Entries:
    from datasets import Dataset

    parts: dict[str, list[str]] = {}
    for file in files:
        named = _PART.match(file.name) or _PART.fullmatch(file.parent.name)
        parts.setdefault(named[1].lower() if named else file.stem.partition("-")[0], []).append(str(file))
    if not parts.keys() & {"train", *_TEST_NAMES}:
        parts = {"train": [str(file) for file in files]}
    for file in files[1:]:
        if column_names(file) != column_names(files[0]):
            raise DataError(f"{file} has other columns than {files[0].name}: name one of them, or take one out")
    try:
        kept = str(cache_folder("tables"))
        data = {part: Dataset.from_parquet(names, cache_dir=kept) for part, names in parts.items()}
    except Exception as error:
        raise DataError(f"{root} holds Parquet files that cannot be read as one set ({type(error).__name__})") from None
    return entries_of(data, str(root))


def entries_of(data: Any, title: str) -> Entries:
    """Return the entries of a `Dataset` or `DatasetDict`.

    The image column is recognised by its type, the label by its type (`ClassLabel`) or its name. Columns of unit and
    client are used if the data set has them. The test part of a `DatasetDict` is optional.

    Raises:
        DataError: There is no training part, no image column or no usable label column.
    """
    from datasets import concatenate_datasets

    train, test, names = _parts(data, title)
    both = train if test is None else concatenate_datasets([train, test])
    image, label = _image_column(both, title), _label_column(both, title)
    labels, classes = _labels(both, label, title)
    found = find_columns([name for name in both.column_names if name not in (image, label)], Path(title))
    extra = {role: _cells(both, found[role]) for role in ("unit", "client") if role in found}
    return Entries(
        images=_undecoded(both, image),
        labels=labels,
        num_train=len(train),
        classes=classes,
        units=extra.get("unit"),
        clients=extra.get("client"),
        label_faults=dict.fromkeys(np.flatnonzero(labels < 0).tolist(), "no label"),
        parts=names,
    )


def _load(root: Path) -> Entries:
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(root))
    except Exception as error:
        raise DataError(f"{root} was not saved whole by datasets ({type(error).__name__}): save it again") from None
    return entries_of(data, str(root))


def _parts(data: Any, title: str) -> tuple["Dataset", "Dataset | None", tuple[str, str]]:
    if not isinstance(data, Mapping):
        return data, None, (title, title)
    names = list(data)
    train = "train" if "train" in data else names[0] if len(names) == 1 else None
    if train is None or not len(data[train]):
        raise DataError(f"{title} has the parts {', '.join(names) or '(none)'}: one must be called train, not empty")
    test = next((name for name in _TEST_NAMES if name in data and name != train), None)
    shown = (f"the part {train}", f"the part {test}")
    if test is None:
        return data[train], None, shown
    if data[train].features != data[test].features:
        raise DataError(f"{title}: the parts {train} and {test} have different columns")
    return data[train], data[test], shown


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
    named = [name for name in _LABEL_NAMES if name in rows.column_names]
    if len(typed) == 1:
        return str(typed[0])
    if named := [name for name in named if name in typed] or named:
        return str(named[0])
    if found := find_columns(rows.column_names, Path(title)).get("label"):
        return found
    raise DataError(
        f"{title} needs a column of labels: a ClassLabel, or one called {' or '.join(_LABEL_NAMES)}; its columns are "
        f"{', '.join(rows.column_names)}"
    )


def _labels(rows: "Dataset", column: str, title: str) -> tuple[np.ndarray, tuple[str, ...]]:
    kind, values = rows.features[column], rows[column][:]
    if names := getattr(kind, "names", None):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), tuple(names)
    if any(not isinstance(value, int | float | str | None) or isinstance(value, bool) for value in values):
        raise DataError(f"{title}: the values of {column} must be whole numbers or names")
    return numbered(label_names([cell_text(value) for value in values]))


def _undecoded(rows: "Dataset", column: str) -> "Dataset":
    from datasets import Image

    kept = rows.select_columns(column)
    kept = kept if column == "image" else kept.rename_column(column, "image")
    return kept.cast_column("image", Image(decode=False))
