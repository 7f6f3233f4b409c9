"""Where labelled images come from: one contract for every kind of source, and the names they go by.

Opening a source is cheap: it looks at file names, sizes and times, decodes nothing
and imports nothing heavy. Reading it (`ImageSource.entries`) gives encoded images.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import DataError
from common.sections import DataConfig, parts

if TYPE_CHECKING:
    from datasets import Dataset

HUBS = {
    "hf": "a data set of the Hugging Face hub, hf:<name> or hf:<name>:<config>",
    "torchvision": "a data set of torchvision, such as torchvision:Flowers102",
    "medmnist": "a two-dimensional set of MedMNIST, such as medmnist:pathmnist",
}
_NAMED = {
    "digits": "1,797 handwritten digits of 8 x 8 pixels, inside scikit-learn",
    "fashion-mnist": "70,000 garments of 28 x 28 pixels, four IDX files",
    "mnist": "70,000 handwritten digits of 28 x 28 pixels, four IDX files or torchvision",
    "cifar10": "60,000 photographs of 32 x 32 pixels, Parquet files",
    "cifar100": "60,000 photographs of 32 x 32 pixels, Parquet files or torchvision",
}
KNOWN_SOURCES = tuple(_NAMED)
# Where the images of a real federation lie; every client has a source of its own, which no server names.
OWN_IMAGES = "clients"
_MANIFESTS = (".csv", ".parquet")


@dataclass(frozen=True)
class Entries:
    """All entries of a source in a fixed order, training entries first; images stay encoded.

    Attributes:
        images: n rows, column `image` with rows {"bytes": bytes | None, "path": str | None}.
        labels: (n,) int64 index into `classes`; -1 if there is none, and `label_faults` says why.
        num_train: The first so many entries are for training; the rest is the source's own test set.
        classes: Class names.
        item_keys: (n,) S32 that changes when that one item changes; None if only all change together.
        units: Privacy unit of each entry, such as a patient; "" is a unit of its own.
        clients: Natural client of each entry; "" belongs to none.
        label_faults: Row -> why it has no label.
        root: Folder that `place` shows paths from.
        parts: What the training and the test part are called where entries have no file.
    """

    images: "Dataset"
    labels: np.ndarray
    num_train: int
    classes: tuple[str, ...]
    item_keys: np.ndarray | None = None
    units: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    label_faults: Mapping[int, str] = field(default_factory=dict)
    root: str = ""
    parts: tuple[str, str] = ("the training part", "the test part")

    def place(self, row: int) -> str:
        """The file of an entry, seen from the source; else its number, from 0, and its part."""
        path = self.images[row]["image"]["path"]
        if path and self.root and Path(path).is_relative_to(self.root):
            return str(Path(path).relative_to(self.root))
        if path:
            return str(path)
        own, name = (row, self.parts[0]) if row < self.num_train else (row - self.num_train, self.parts[1])
        return f"image number {own} of {name}"


@dataclass(frozen=True)
class ImageSource:
    """Labelled images, read when they are first needed.

    Attributes:
        name: What the user called it.
        fingerprint: Hex digest that changes when any of its files changes.
        load: Reads it; use `entries`, which does so once.
        place: Where it lies: two sources of one name at two places are two sources.
    """

    name: str
    fingerprint: str
    load: Callable[[], Entries]
    place: str = ""

    @cached_property
    def entries(self) -> Entries:
        """All entries, read on first use.

        Raises:
            DataError: The files are damaged or do not hold what they should.
        """
        return self.load()


def open_source(config: DataConfig) -> ImageSource:
    """Open the source that `data.source`, `data.path` and `data.classes` name.

    Raises:
        DataError: The name is unknown, files are missing, there are no images, or the class list is unusable.
    """
    source = _opener(config.source)(config)
    return _with_classes(source, parts(config.classes)) if parts(config.classes) else source


def names_a_place(source: str) -> bool:
    """Whether `data.source` is a path, and not a known name or a hub's.

    >>> names_a_place("hf:uoft-cs/cifar10"), names_a_place("./pets")
    (False, True)
    """
    if source in _NAMED or source == OWN_IMAGES or source.partition(":")[0] in HUBS:
        return False
    return "/" in source or source.endswith(_MANIFESTS) or Path(source).is_dir()


def describe_sources() -> list[tuple[str, str]]:
    """Every kind of source: what to write for `data.source`, and what it is."""
    hubs = [(f"{hub}:<name>", text) for hub, text in HUBS.items()]
    places = [
        ("/path/to/folder", "one sub-folder a class, with or without train/ and test/; or saved by datasets"),
        ("/path/to/file.csv", "a manifest: path, label, and if wanted unit, client, split"),
        ("/path/to/file.parquet", "the same; image (bytes) may stand for path"),
    ]
    own = (OWN_IMAGES, "each client's own, in a federation of machines: see `bract client init`")
    return [*_NAMED.items(), *hubs, *places, own]


def _opener(source: str) -> Callable[[DataConfig], ImageSource]:
    from common.data import folders, hubs, manifests, named, saved

    if source == OWN_IMAGES:
        raise DataError(f"data.source={OWN_IMAGES!r}: the images lie at clients of their own, here are none")
    hub = source.partition(":")[0]
    if source in _NAMED:
        return named.OPENERS[source]
    if hub in HUBS and ":" in source:
        return hubs.OPENERS[hub]
    if not names_a_place(source):
        raise DataError(
            f"data.source={source!r} is neither a known source ({', '.join(_NAMED)}) nor one of "
            f"{', '.join(f'{hub}:<name>' for hub in HUBS)} nor a folder of images\n"
            "  a folder needs one sub-folder a class: data.source=/path/to/folder; `bract list sources` shows all"
        )
    if source.endswith(_MANIFESTS):
        return manifests.open_manifest
    return saved.open_saved if saved.is_saved(Path(source)) else folders.open_folder


def refuse_path(config: DataConfig, why: str) -> None:
    """Refuse `data.path` where the source needs none.

    Raises:
        DataError: `data.path` is set.
    """
    if config.path:
        raise DataError(f"data.path does not go with data.source={config.source!r}: {why}")


def first_folder(path: str, usual: Sequence[str | Path], wanted: Sequence[str], advice: str) -> Path:
    """The first folder that holds all wanted files.

    Args:
        path: The only folder to look in, if not empty.
        usual: Folders to look in otherwise.
        wanted: File names.
        advice: What to do if none does.

    Raises:
        DataError: None does; says where it looked.
    """
    folders = [Path(path)] if path else [Path(folder) for folder in usual]
    for folder in folders:
        if all((folder / name).is_file() for name in wanted):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(f"missing {', '.join(wanted)}\n  looked in: {looked}\n  {advice}")


def file_keys(files: Iterable[Path]) -> np.ndarray:
    """(n,) S32, one key a file: changes with its path, the target of a link, its size and its time."""
    keys = []
    for file in files:
        try:
            state = file.stat()
            text = f"{file.absolute()}\0{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
        except (OSError, ValueError):  # a table may hold what is no path at all
            text = f"{file.absolute()}\0missing"
        keys.append(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32])
    return np.array(keys, dtype="S32")


def fingerprint_of(files: Iterable[Path], *more: object) -> str:
    """Hex digest over the keys of files, and whatever else decides what is read."""
    return hashlib.sha256(file_keys(files).tobytes() + repr(more).encode("utf-8", "surrogateescape")).hexdigest()


def image_rows(cells: Sequence[Mapping[str, Any]]) -> "Dataset":
    """Encoded images as a data set: rows {"bytes": bytes | None, "path": str | None}."""
    import pyarrow as pa
    from datasets import Dataset, Features, Image
    from datasets.table import InMemoryTable

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = Features({"image": Image(decode=False)})
    table = pa.table({"image": pa.array(list(cells), type=kind)})
    return Dataset(InMemoryTable(table.cast(features.arrow_schema)))


def _with_classes(source: ImageSource, wanted: tuple[str, ...]) -> ImageSource:
    """The same images under the run's public class list; images of other classes lose their label."""
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise DataError(f"data.classes={','.join(wanted)!r}: give at least two different names, joined by commas")
    fingerprint = hashlib.sha256(repr((source.fingerprint, wanted)).encode()).hexdigest()
    return ImageSource(source.name, fingerprint, lambda: _relabelled(source, wanted), source.place)


def _relabelled(source: ImageSource, wanted: tuple[str, ...]) -> Entries:
    entries = source.entries
    names = entries.classes
    if all(name.isdecimal() for name in names) and not set(names) & set(wanted):  # numbers count along the list
        names = tuple(wanted[int(name)] if int(name) < len(wanted) else name for name in names)
    table = np.array([*(wanted.index(name) if name in wanted else -1 for name in names), -1], dtype=np.int64)
    labels = table[entries.labels]  # a label of -1 takes the last, -1
    faults = dict(entries.label_faults)
    for row in np.flatnonzero((labels < 0) & (entries.labels >= 0)).tolist():
        faults[row] = f"unknown class {names[entries.labels[row]]!r}: not in data.classes"
    missing = [name for number, name in enumerate(wanted) if not (labels == number).any()]
    log = logging.getLogger("bract")
    if missing:
        log.warning("data.source=%r has no image of %s", source.name, ", ".join(missing))
    if unknown := sorted(set(names) - set(wanted)):
        log.warning("data.source=%r has classes that data.classes leaves out: %s", source.name, ", ".join(unknown))
    return replace(entries, labels=labels, classes=wanted, label_faults=faults)
