"""Where labelled images come from: one contract for every kind of source, and the names they go by.

Opening a source is cheap: it looks at file names, sizes and times, decodes nothing
and imports nothing heavy. Reading it (`ImageSource.entries`) gives encoded images.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.config.schema import DataConfig, split_list
from common.data.sources.base_source import (
    OWN_IMAGES,
    Entries,
    ImageSource,
)
from common.data.sources.huggingface import open_hugging_face
from common.data.sources.medmnist import open_medmnist
from common.data.sources.torchvision_sets import open_torchvision
from common.errors import DataError

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
_MANIFESTS = (".csv", ".parquet")


def open_source(config: DataConfig) -> ImageSource:
    """Open the source that `data.source`, `data.path` and `data.classes` name.

    Raises:
        DataError: The name is unknown, files are missing, there are no images, or the class list is unusable.
    """
    source = _opener(config.source)(config)
    return _with_classes(source, split_list(config.classes)) if split_list(config.classes) else source


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
    from common.data.sources import builtin as named
    from common.data.sources import datasets_library as saved
    from common.data.sources import image_folder as folders
    from common.data.sources import manifest as manifests

    if source == OWN_IMAGES:
        raise DataError(f"data.source={OWN_IMAGES!r}: the images lie at clients of their own, here are none")
    hub = source.partition(":")[0]
    if source in _NAMED:
        return named.OPENERS[source]
    if hub in HUBS and ":" in source:
        return OPENERS[hub]
    if not names_a_place(source):
        raise DataError(
            f"data.source={source!r} is neither a known source ({', '.join(_NAMED)}) nor one of "
            f"{', '.join(f'{hub}:<name>' for hub in HUBS)} nor a folder of images\n"
            "  a folder needs one sub-folder a class: data.source=/path/to/folder; `bract list sources` shows all"
        )
    if source.endswith(_MANIFESTS):
        return manifests.open_manifest
    return saved.open_saved if saved.is_saved(Path(source)) else folders.open_folder


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


OPENERS: dict[str, Callable[[DataConfig], ImageSource]] = {
    "hf": open_hugging_face,
    "torchvision": open_torchvision,
    "medmnist": open_medmnist,
}
