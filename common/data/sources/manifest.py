"""Manifests, tables with one image per row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.config.sections import DataConfig
from common.data.folders.layout import Validation
from common.data.folders.similar_names import alike_names
from common.data.folders.unread import HELD_OUT
from common.data.sources.base_source import (
    Entries,
    ImageSource,
    closed_among,
    file_keys,
    fingerprint_of,
    image_rows,
    refuse_closed,
)
from common.data.sources.labels import MISSING, joined_labels, label_names, numbered
from common.data.sources.tables.columns import (
    FURTHER,
    ROLES,
    TEST,
    TRAIN,
    VALIDATION,
    Table,
    choose_split,
    find_columns,
    flag_columns,
    missing_column,
    paths_by_content,
)
from common.data.sources.tables.image_paths import FoundFiles, find_files
from common.data.sources.tables.parquet_tables import PARQUET_SUFFIXES, read_parquet_table
from common.data.sources.tables.parts import on_both_sides
from common.data.sources.tables.shards import describe_siblings
from common.data.sources.tables.spreadsheets import read_spreadsheet
from common.data.sources.tables.text_tables import Sheet, read_text_table
from common.errors import DataError
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 3  # raise it when the same file would give other labels, units or files
_MAX_SHOWN = 5
# It reads a file's columns of some roles and, by its own name, one column more.
_Reader = Callable[[Path, str, Sequence[str]], Table]


@dataclass(frozen=True)
class _Manifest:
    """A table with the files of its rows and the order of use."""

    file: Path
    root: Path
    table: Table
    found: FoundFiles | None
    names: tuple[str, ...]
    order: tuple[int, ...]
    num_train: int

    @property
    def files(self) -> Sequence[Path | None]:
        return () if self.found is None else self.found.files


def open_manifest(config: DataConfig) -> ImageSource:
    """Open a table with one image and its label in each row.

    In Parquet a column of images may stand for their paths. The usual header names are known. The columns for unit,
    client and split are optional. Paths are relative to the manifest's folder, or to `data.path` if that is set. A row
    whose file is missing is a fault of that row alone.

    Raises:
        DataError: The file is missing or closed to this user, is not such a table, lacks a column or has no rows.
    """
    file = Path(config.source)
    refuse_closed(file, config)
    if not file.is_file():
        raise DataError(f"data.source={config.source!r}: there is no such file")
    root = Path(config.path) if config.path else file.parent
    table = _reader(file)(file, "", ROLES)
    refuse_closed(root, config)
    _check(file, root, table)
    order, num_train = _divided(table, config.validation)
    if not num_train:
        raise DataError(f"{file}: no row is of the split train; there must be rows to train on")
    paths = table.columns.get("path")
    found = None if paths is None else find_files(paths, root)
    manifest = _Manifest(file, root, table, found, config.class_names, order, num_train)
    files = [name for name in manifest.files if name is not None]
    fingerprint = fingerprint_of([file, *files], root.resolve(), FORMAT, table.used, num_train, len(order))
    return ImageSource(
        file.stem,
        fingerprint,
        lambda: _load(manifest),
        f"{file.resolve()}\0{root.resolve()}",
        fault=_fault(manifest),
        doubt=_doubt(manifest),
        notes=tuple(_notes(manifest)),
        not_read=_not_read(manifest) + describe_siblings(file),
    )


def read_images(file: Path) -> Entries:
    """Read a table's images in the order of its rows, without labels.

    Raises:
        DataError: The file is missing, is not such a table, or has no rows.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    # Labels and patients are not used, so columns that leave a doubt about them must not matter.
    table = _reader(file)(file, "", ("path",))
    paths = table.columns.get("path")
    count = _count_rows(file) if paths is None else len(paths)
    if not count:
        raise DataError(f"{file} has no rows")
    bare = replace(table, columns={"label": [""] * count}, classes=())
    found = None if paths is None else find_files(paths, file.parent)
    return _load(_Manifest(file, file.parent, bare, found, (), tuple(range(count)), count))


def read_column(config: DataConfig, name: str) -> tuple[str, ...]:
    """Return a column of a manifest in the order of its entries.

    Raises:
        DataError: The source is not a manifest, or lacks the column.
    """
    file = Path(config.source)
    if not file.name.lower().endswith(MANIFEST_SUFFIXES) or not file.is_file():
        raise DataError(f"{config.source} is not a manifest (a table), so it has no column {name}")
    table = _reader(file)(file, name, ROLES)
    if FURTHER not in table.columns:
        known = ", ".join((*table.used.values(), *table.unused))
        raise DataError(f"{file} lacks the column {name}; its columns are {known}")
    return tuple(table.columns[FURTHER][row] for row in _divided(table, config.validation)[0])


def _count_rows(file: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(file).num_rows)


def _from_sheet(read: Callable[[Path], Sheet]) -> _Reader:
    """Return a reader that finds the columns of a sheet by name."""

    def read_table(file: Path, further: str, roles: Sequence[str]) -> Table:
        sheet = read(file)
        found = find_columns(sheet.header, file, roles)
        if "path" not in found and (name := paths_by_content(sheet.header, sheet.rows)):
            found = {role: column for role, column in found.items() if column != name} | {"path": name}
        if "path" not in found:
            raise missing_column(file, "path", sheet.header)
        places = {role: sheet.header.index(name) for role, name in found.items()}
        columns = {role: [row[place] for row in sheet.rows] for role, place in places.items()}
        for role, cells in columns.items():
            broken = next((line for line, cell in zip(sheet.lines, cells, strict=True) if "\n" in cell), None)
            # A quote that is opened by mistake swallows lines until the next one.
            if broken is not None:
                raise DataError(f'{file}, line {broken}: the {role} goes on in the next line: is a quote (") missing?')
        found = choose_split(found, columns.get("split", []))
        unused = tuple(name for name in sheet.header if name and name not in found.values())
        kept = {role: columns[role] for role in found}
        # A column without a name is called as no column is.
        if further and further in sheet.header:
            kept[FURTHER] = [row[sheet.header.index(further)] for row in sheet.rows]
        if "label" in roles and "label" not in found and len(flags := flag_columns(sheet.header, sheet.rows)) > 1:
            raise missing_column(file, "label", sheet.header, flags)
        return Table(kept, found, unused, notes=sheet.notes)

    return read_table


_READERS: Mapping[str, _Reader] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), _from_sheet(read_text_table)),
    **dict.fromkeys((".xlsx", ".xlsm"), _from_sheet(read_spreadsheet)),
    **dict.fromkeys(PARQUET_SUFFIXES, read_parquet_table),
}
MANIFEST_SUFFIXES = tuple(_READERS)


def _reader(file: Path) -> _Reader:
    # A file may be called `.csv`, which has no suffix in Python's sense.
    found = next((read for suffix, read in _READERS.items() if file.name.lower().endswith(suffix)), None)
    if found is None:
        raise DataError(f"{file} is not a table: its name must end in {', '.join(MANIFEST_SUFFIXES)}")
    return found


def _check(file: Path, root: Path, table: Table) -> None:
    if "label" not in table.columns:
        raise missing_column(file, "label", (*table.used.values(), *table.unused))
    if not table.columns["label"]:
        raise DataError(f"{file} has no rows")
    if not root.is_dir():
        raise DataError(f"data.path={str(root)!r}: there is no such folder; paths in {file} are relative to it")
    parts = {part.lower() for part in _without_missing(table.columns.get("split", []))}
    if other := sorted(parts - TRAIN - TEST - VALIDATION):
        raise DataError(f"{file}: the column split holds {', '.join(other[:5])}; it may hold train, test or val")


def _divided(table: Table, validation: Validation) -> tuple[tuple[int, ...], int]:
    """Return the used rows with training rows first.

    The second value is the number of training rows.
    """
    words = [word.lower() for word in table.columns.get("split", [""] * len(table.columns["label"]))]
    use = {"train": 0, "test": 1, "drop": 2}[validation]
    sides = np.array([1 if word in TEST else use if word in VALIDATION else 0 for word in words])
    order = np.argsort(sides, kind="stable")[: (sides < 2).sum()]
    return tuple(order.tolist()), int((sides == 0).sum())


def _not_read(manifest: _Manifest) -> tuple[str, ...]:
    """Return a phrase on each kind of row that is not used."""
    dropped = len(manifest.table.columns["label"]) - len(manifest.order)
    use = f"{HELD_OUT if manifest.num_train == len(manifest.order) else ''} (data.validation=train or test uses them)"
    phrases = [f"{dropped:,} rows of the validation part{use}"] if dropped else []
    if manifest.found is not None and manifest.found.advice:
        name = next(text for text in manifest.table.columns["path"] if text)
        phrases.append(f"all files of {manifest.file.name}: none is there, such as {name} ({manifest.found.advice})")
    return tuple(phrases)


def _labelled_twice(manifest: _Manifest) -> str:
    """Return a doubt about files to which rows give different labels."""
    labels: dict[Path, set[str]] = {}
    for file, label in zip(manifest.files, label_names(manifest.table.columns["label"]), strict=False):
        if file is not None and label:
            labels.setdefault(file, set()).add(label)
    several = {file: found for file, found in labels.items() if len(found) > 1}
    if not several:
        return ""
    first, found = next(iter(several.items()))
    return (
        f"{manifest.file}: {len(several):,} files have different labels in several rows, such as {first} "
        f"({', '.join(sorted(found))})\n  keep one row for each file, or list the classes with data.classes to use all"
    )


def _without_missing(texts: Sequence[str]) -> list[str]:
    return ["" if text in MISSING else text for text in texts]


def _load(manifest: _Manifest) -> Entries:
    table, name, order, num_train = manifest.table, manifest.file.name, manifest.order, manifest.num_train
    written = [table.columns["label"][row] for row in order]
    labels, classes = _labels(written, table.classes, manifest.names)
    groups = {role: _without_missing(table.columns[role]) for role in ("unit", "client") if role in table.columns}
    units, clients = (
        tuple(groups[role][row] for row in order) if role in groups else None for role in ("unit", "client")
    )
    files = None if manifest.found is None else [manifest.found.files[row] for row in order]
    return Entries(
        images=_stored_images(manifest.file, table.image).select(list(order))
        if files is None
        else image_rows([{"bytes": None, "path": None if file is None else str(file)} for file in files]),
        labels=labels,
        num_train=num_train,
        classes=classes,
        item_keys=None if files is None else file_keys(file or manifest.root for file in files),
        units=units,
        clients=clients,
        label_faults={row: _no_label(written[row]) for row in np.flatnonzero(labels < 0).tolist()},
        root=str(manifest.root),
        parts=(name, name) if num_train == len(labels) else (f"the train rows of {name}", f"the test rows of {name}"),
    )


def _labels(names: Sequence[str], stated: tuple[str, ...], listed: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    if not stated:
        return numbered(label_names(names, listed))
    number = {name: index for index, name in enumerate(stated)}
    return np.array([number.get(name, -1) for name in names], dtype=np.int64), stated


def _no_label(text: str) -> str:
    return f"no label ({text!r})" if text else "no label"


def _fault(manifest: _Manifest) -> str:
    """Return what the owner of a table must put right, empty if nothing."""
    if manifest.found is not None:
        if closed := closed_among(file for file in manifest.found.files if file is not None):
            return closed
        for name, files in manifest.found.unclear.items():
            shown = ", ".join(str(file.relative_to(manifest.root)) for file in files[:_MAX_SHOWN])
            return f"{manifest.file}: {name} may be any of {len(files)} files ({shown}): write the one that is meant"
    table, order = manifest.table, manifest.order
    units = _without_missing(table.columns.get("unit", [""] * len(table.columns["label"])))
    column, advice = table.used.get("unit", ""), "put all its rows into one part"
    return on_both_sides([units[row] for row in order], manifest.num_train, column, str(manifest.file), advice)


def _doubt(manifest: _Manifest) -> str:
    """Return why labels may not be the classes that are meant."""
    texts = manifest.table.columns["label"]
    alike = alike_names(set(_without_missing(texts)) - {""})
    return (
        joined_labels(texts, str(manifest.file)) or (alike and f"{manifest.file}: {alike}") or _labelled_twice(manifest)
    )


def _notes(manifest: _Manifest) -> Iterator[str]:
    """Yield how the table was read."""
    table = manifest.table
    renamed = ", ".join(f"{role} from {name}" if role != name else role for role, name in table.used.items())
    unused = f"; not used: {', '.join(table.unused)}" if table.unused else ""
    yield f"columns of {manifest.file.name}: {renamed}{unused}"
    yield from table.notes
    if manifest.found is not None and manifest.found.left_out:
        yield f"paths below {manifest.found.left_out} are read from {manifest.root}"


def _stored_images(file: Path, column: str) -> "Dataset":
    """Return a column of encoded images under the name `image`."""
    from datasets import Dataset, Image

    try:
        rows = Dataset.from_parquet(str(file), columns=[column], cache_dir=str(cache_folder("tables")))
        rows = rows if column == "image" else rows.rename_column(column, "image")
        return rows.cast_column("image", Image(decode=False))
    except Exception as error:
        raise DataError(
            f"{file}: the column {column} must hold encoded images as bytes ({type(error).__name__})"
        ) from None
