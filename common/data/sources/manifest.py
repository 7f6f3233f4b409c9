"""Manifests, CSV or Parquet tables with one image per row."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, file_keys, fingerprint_of, image_rows
from common.data.sources.labels import numbered
from common.errors import DataError
from common.system.paths import bract_home

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = ("path", "label", "unit", "client", "split")


@dataclass(frozen=True)
class _Table:
    """Known columns of a manifest with the folder of its images."""

    file: Path
    root: Path
    columns: Mapping[str, list[str]]

    @property
    def holds_bytes(self) -> bool:
        return "path" not in self.columns

    def files(self) -> list[Path]:
        return [self.root / name for name in self.columns.get("path", [])]


def open_manifest(config: DataConfig) -> ImageSource:
    """Open a table with the columns `path` (or `image`) and `label`.

    `image` holds bytes and needs Parquet. The columns `unit`, `client` and `split` are optional. Paths are relative to
    the manifest's folder, or to `data.path` if that is set. A row whose file is missing is a fault of that row alone.

    Raises:
        DataError: The file is missing, is not such a table, lacks a column or has no rows.
    """
    file = Path(config.source)
    if not file.is_file():
        raise DataError(f"data.source={config.source!r}: there is no such file")
    root = Path(config.path) if config.path else file.parent
    table = _Table(file, root, _READERS[_suffix(file)](file, _COLUMNS))
    _check(table)
    fingerprint = fingerprint_of([file, *table.files()], root.resolve())
    return ImageSource(file.stem, fingerprint, lambda: _load(table), f"{file.resolve()}\0{root.resolve()}")


def read_images(file: Path) -> Entries:
    """Read a table's images in the order of its rows, without labels.

    Raises:
        DataError: The file is missing, is not such a table, or has no rows.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    columns = _READERS[_suffix(file)](file, ("path",))
    if not columns and file.suffix == ".csv":
        raise _missing(file, "path")
    table = _Table(file, file.parent, columns | {"label": [""] * _count_rows(file, columns)})
    _check(table)
    return _load(table)


def read_column(config: DataConfig, name: str) -> tuple[str, ...]:
    """Return a column of a manifest in the order of its entries.

    Raises:
        DataError: The source is not a manifest, or lacks the column.
    """
    file = Path(config.source)
    if _suffix(file) not in _READERS or not file.is_file():
        raise DataError(f"{config.source} is not a manifest (CSV or Parquet), so it has no column {name}")
    columns = _READERS[_suffix(file)](file, (*_COLUMNS, name))
    if name not in columns:
        raise _missing(file, name)
    order, _ = _order(_Table(file, file.parent, columns))
    return tuple(columns[name][row] for row in order.tolist())


def _suffix(file: Path) -> str:
    return f".{file.name.rpartition('.')[2]}"


def _count_rows(file: Path, columns: Mapping[str, list[str]]) -> int:
    from pyarrow import parquet

    return len(columns["path"]) if columns else int(parquet.read_metadata(file).num_rows)


def _read_csv(file: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, restval="")
            rows = list(reader)
            names = [name for name in reader.fieldnames or [] if name in wanted]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8 ({error})") from None
    return {name: [row[name].strip() for row in rows] for name in names}


def _read_parquet(file: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    from pyarrow import ArrowException
    from pyarrow import parquet as pq

    try:
        present = pq.read_schema(file).names
        names = [name for name in wanted if name in present and not (name == "path" and "image" in present)]
        columns = pq.read_table(file, columns=names).to_pydict()
    except (OSError, ArrowException) as error:
        raise DataError(f"{file} is not a Parquet file that can be read ({type(error).__name__})") from None
    if "image" not in present and "path" not in present:
        raise _missing(file, "path or image")
    return {name: [_text(value) for value in values] for name, values in columns.items()}


def _text(value: Any) -> str:
    """Return a cell as text."""
    if value is None or value != value:  # noqa: PLR0124 -- not a number
        return ""
    # Data frames turn whole numbers into floats where a column has gaps: 3.0 is the class 3.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


_READERS: dict[str, Callable[[Path, tuple[str, ...]], dict[str, list[str]]]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
MANIFEST_SUFFIXES = tuple(_READERS)


def _missing(file: Path, column: str) -> DataError:
    return DataError(
        f"{file} lacks the column {column}\n  a manifest has path (or image, with bytes, in Parquet) and label; unit, "
        "client and split (train or test) are optional"
    )


def _check(table: _Table) -> None:
    file = table.file
    if file.suffix == ".csv" and table.holds_bytes:
        raise _missing(file, "path")
    if "label" not in table.columns:
        raise _missing(file, "label")
    if not table.columns["label"]:
        raise DataError(f"{file} has no rows")
    if not table.root.is_dir():
        raise DataError(f"data.path={str(table.root)!r}: there is no such folder; paths in {file} are relative to it")
    other = sorted({split for split in table.columns.get("split", []) if split.lower() not in ("", "train", "test")})
    if other:
        raise DataError(f"{file}: the column split holds {', '.join(other[:5])}; it may hold train or test")
    if not _order(table)[1]:
        raise DataError(f"{file}: every row is of the split test; there must be rows to train on")


def _order(table: _Table) -> tuple[np.ndarray, int]:
    """Return rows with training rows first and the number of those."""
    splits = table.columns.get("split")
    if splits is None:
        count = len(table.columns["label"])
        return np.arange(count), count
    is_test = np.array([split.lower() == "test" for split in splits])
    return np.argsort(is_test, kind="stable"), int((~is_test).sum())


def _load(table: _Table) -> Entries:
    order, num_train = _order(table)
    labels, classes = numbered(table.columns["label"])
    labels = labels[order]
    units, clients = (
        tuple(table.columns[name][row] for row in order) if name in table.columns else None
        for name in ("unit", "client")
    )
    files = table.files()
    name = table.file.name
    return Entries(
        images=_stored_images(table.file).select(order)
        if table.holds_bytes
        else image_rows([_cell(table, row) for row in order.tolist()]),
        labels=labels,
        num_train=num_train,
        classes=classes,
        item_keys=None if table.holds_bytes else file_keys(files[row] for row in order.tolist()),
        units=units,
        clients=clients,
        label_faults=dict.fromkeys(np.flatnonzero(labels < 0).tolist(), "no label"),
        root=str(table.root),
        parts=(name, name) if num_train == len(labels) else (f"the train rows of {name}", f"the test rows of {name}"),
    )


def _cell(table: _Table, row: int) -> dict[str, str | None]:
    name = table.columns["path"][row]
    return {"bytes": None, "path": str(table.root / name) if name else None}


def _stored_images(file: Path) -> "Dataset":
    """Return the column `image`, plain bytes or pairs of bytes and path."""
    from datasets import Dataset, Image

    try:
        rows = Dataset.from_parquet(str(file), columns=["image"], cache_dir=str(bract_home() / "datasets"))
        return rows.cast_column("image", Image(decode=False))
    except Exception as error:
        raise DataError(
            f"{file}: the column image must hold encoded images as bytes ({type(error).__name__})"
        ) from None
