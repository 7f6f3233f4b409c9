"""Data sets of the `datasets` library, saved to a folder or in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, fingerprint_of, refuse_path
from common.data.sources.labels import numbered
from common.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_LABEL_NAMES = ("label", "labels", "fine_label")
_TEST_NAMES = ("test", "validation", "valid", "val")


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
    return ImageSource(root.name, fingerprint_of(files, "saved"), lambda: _load(root), str(root.resolve()))


def entries_of(data: Any, title: str) -> Entries:
    """Return the entries of a `Dataset` or `DatasetDict`.

    The image column is recognised by its type, the label by its type (`ClassLabel`) or its name. Columns `unit` and
    `client` are used if the data set has them. The test part of a `DatasetDict` is optional.

    Raises:
        DataError: There is no training part, no image column or no usable label column.
    """
    from datasets import concatenate_datasets

    train, test, names = _parts(data, title)
    both = train if test is None else concatenate_datasets([train, test])
    image, label = _image_column(both, title), _label_column(both, title)
    labels, classes = _labels(both, label, title)
    columns = [name for name in ("unit", "client") if name in both.column_names]
    extra = {name: tuple("" if v is None else str(v) for v in both[name]) for name in columns}
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

    columns = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    if len(columns) > 1 and "image" in columns:
        return "image"
    if len(columns) != 1:
        raise DataError(
            f"{title} needs one column of images (datasets.Image), or one of them called image; its columns are "
            f"{', '.join(rows.column_names)}"
        )
    return str(columns[0])


def _label_column(rows: "Dataset", title: str) -> str:
    from datasets import ClassLabel

    typed = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in rows.column_names]
    if len(typed) == 1:
        return str(typed[0])
    if not (named := [name for name in named if name in typed] or named):
        raise DataError(
            f"{title} needs a column of labels: a ClassLabel, or one called {' or '.join(_LABEL_NAMES)}; its columns "
            f"are {', '.join(rows.column_names)}"
        )
    return str(named[0])


def _labels(rows: "Dataset", column: str, title: str) -> tuple[np.ndarray, tuple[str, ...]]:
    kind, values = rows.features[column], rows[column][:]
    if names := getattr(kind, "names", None):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), tuple(names)
    if any(not isinstance(value, int | str | None) or isinstance(value, bool) for value in values):
        raise DataError(f"{title}: the values of {column} must be whole numbers or names")
    return numbered(["" if value is None or value == -1 else str(value) for value in values])


def _undecoded(rows: "Dataset", column: str) -> "Dataset":
    from datasets import Image

    kept = rows.select_columns(column)
    kept = kept if column == "image" else kept.rename_column(column, "image")
    return kept.cast_column("image", Image(decode=False))
