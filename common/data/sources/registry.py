"""Table of all kinds of image sources with names and openers.

Opening a source is cheap: it looks at file names, sizes and times, decodes nothing and imports nothing heavy.
`ImageSource.entries` then reads the encoded images.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common.config.sections import DataConfig
from common.data.folders.similar_names import nearest, nearest_words
from common.data.image_formats import IMAGE_SUFFIXES, foreign_of
from common.data.sources.base_source import OWN_IMAGES, ImageSource, refuse_closed
from common.data.sources.builtin import open_cifar10, open_cifar100, open_digits, open_fashion_mnist, open_mnist
from common.data.sources.class_list import with_classes
from common.data.sources.datasets_library import is_saved, is_sharded, open_saved, open_shards
from common.data.sources.huggingface import open_hugging_face
from common.data.sources.image_folder import open_folder
from common.data.sources.manifest import MANIFEST_SUFFIXES, open_manifest
from common.data.sources.medmnist import open_medmnist
from common.data.sources.torchvision_sets import open_torchvision
from common.errors import DataError
from common.system.paths import check_cache


@dataclass(frozen=True)
class SourceKind:
    """A kind of image source.

    The pattern is the value of `data.source`: a name, `hub:<name>`, or an example of a path.
    """

    pattern: str
    open: Callable[[DataConfig], ImageSource]
    description: str


def _open_folder(config: DataConfig) -> ImageSource:
    folder = Path(config.source)
    refuse_closed(folder, config)
    return (open_saved if is_saved(folder) else open_shards if is_sharded(folder) else open_folder)(config)


def _refuse_own_images(config: DataConfig) -> ImageSource:
    raise DataError(f"data.source={config.source!r}: the images lie at clients of their own, here are none")


_FOLDER = "/path/to/folder"
_FILE = "/path/to/file"
_KINDS = (
    SourceKind("digits", open_digits, "1,797 handwritten digits of 8 x 8 pixels, inside scikit-learn"),
    SourceKind("fashion-mnist", open_fashion_mnist, "70,000 garments of 28 x 28 pixels, four IDX files"),
    SourceKind("mnist", open_mnist, "70,000 handwritten digits of 28 x 28 pixels, four IDX files or torchvision"),
    SourceKind("cifar10", open_cifar10, "60,000 photographs of 32 x 32 pixels, Parquet files"),
    SourceKind("cifar100", open_cifar100, "60,000 photographs of 32 x 32 pixels, Parquet files or torchvision"),
    SourceKind("hf:<name>", open_hugging_face, "a data set of the Hugging Face hub, hf:<name> or hf:<name>:<config>"),
    SourceKind("torchvision:<name>", open_torchvision, "a data set of torchvision, such as torchvision:Flowers102"),
    SourceKind(
        "medmnist:<name>",
        open_medmnist,
        "a two-dimensional set of MedMNIST, such as medmnist:pathmnist (extra medmnist)",
    ),
    SourceKind(
        _FOLDER, _open_folder, "one sub-folder per class, with or without train/ and test/; or saved by datasets"
    ),
    SourceKind(
        f"{_FILE}.csv",
        open_manifest,
        "a manifest: path, label, and optionally unit, client, split; also .tsv, .xlsx (extra xlsx)",
    ),
    SourceKind(f"{_FILE}.parquet", open_manifest, "the same; image (bytes) may stand for path; or a folder of them"),
    SourceKind(
        OWN_IMAGES, _refuse_own_images, "each client's own, in a federation of machines: see `bract client init`"
    ),
)
_BY_PATTERN = {kind.pattern: kind for kind in _KINDS}
# Settings that divide a source and do not change what is in it.
_OF_PARTITION = {
    *("partitioner", "alpha", "classes_per_client", "shards_per_client", "size_skew", "min_client_size"),
    *("subgroup_column", "subgroups"),
}
OpenSource = Callable[[DataConfig], ImageSource]
KNOWN_SOURCES = tuple(name for name in _BY_PATTERN if not {":", "/"} & set(name) and name != OWN_IMAGES)


def open_source(config: DataConfig, *, joined: bool = False) -> ImageSource:
    """Open the source that `data.source`, `data.path` and `data.classes` name.

    Under `joined` a source is read without a refusal of what its files hold.

    Raises:
        ConfigError: This user may not write the cache.
        DataError: The name is unknown, files are missing, there are no images, or the class list is unusable.
    """
    source, wanted = _kind(config.source).open(config), config.class_names
    # A server chooses the class list: it must not learn from a refusal which folders a client has.
    if not joined:
        if source.fault:
            raise DataError(source.fault)
        if source.doubt and not set(wanted) & set(source.entries.classes):
            raise DataError(source.doubt)
        # What is computed of the images is kept there, perhaps after hours.
        check_cache()
    source = replace(source, is_joined=joined)
    return with_classes(source, wanted) if wanted else source


class OpenOnce:
    """An opener that opens each source only once.

    A command that looks at a source twice needs it, because opening a large folder takes seconds.
    """

    def __init__(self) -> None:
        self._opened: dict[str, ImageSource] = {}

    def __call__(self, config: DataConfig) -> ImageSource:
        """Open a source as `open_source` does.

        Raises:
            DataError: See `open_source`.
        """
        key = config.model_dump_json(exclude=_OF_PARTITION)
        if key not in self._opened:
            self._opened[key] = open_source(config)
        return self._opened[key]


def names_a_place(source: str) -> bool:
    """Return whether `data.source` is a path instead of a name.

    >>> names_a_place("hf:uoft-cs/cifar10"), names_a_place("./pets")
    (False, True)
    """
    if source in (*KNOWN_SOURCES, OWN_IMAGES) or _hub_pattern(source) in _BY_PATTERN:
        return False
    return bool({"/", os.sep} & set(source)) or source.lower().endswith(MANIFEST_SUFFIXES) or os.path.exists(source)


def describe_sources() -> list[tuple[str, str]]:
    """Return what can be written for `data.source`, each with a description."""
    return [(kind.pattern, kind.description) for kind in _KINDS]


def _hub_pattern(source: str) -> str:
    return f"{source.partition(':')[0]}:<name>"


def _kind(source: str) -> SourceKind:
    if source in _BY_PATTERN:
        return _BY_PATTERN[source]
    if ":" in source and _hub_pattern(source) in _BY_PATTERN:
        return _BY_PATTERN[_hub_pattern(source)]
    if not names_a_place(source):
        hubs = [pattern for pattern in _BY_PATTERN if ":" in pattern]
        near = nearest_words(nearest(source, os.listdir()))
        raise DataError(
            f"data.source={source!r}{near} is neither a known source ({', '.join(KNOWN_SOURCES)}) nor one of "
            f"{', '.join(hubs)} nor a folder of images\n"
            "  a folder needs one sub-folder per class: data.source=/path/to/folder; `bract list sources` shows all"
        )
    if source.lower().endswith(MANIFEST_SUFFIXES) and not os.path.isdir(source):
        return _BY_PATTERN[f"{_FILE}.csv"]
    if os.path.isfile(source):
        suffix = os.path.splitext(source)[1].lower()
        if foreign := foreign_of(suffix, b""):
            raise DataError(f"data.source={source!r} is not a folder or a table ({foreign.name}): {foreign.remedy}")
        if suffix in IMAGE_SUFFIXES:
            raise DataError(f"data.source={source!r} is one image: name the folder that holds one sub-folder per class")
        raise DataError(
            f"data.source={source!r} is a file of a kind that is not read: a table must end in "
            f"{', '.join(MANIFEST_SUFFIXES)}, so save it as one of these"
        )
    return _BY_PATTERN[_FOLDER]
