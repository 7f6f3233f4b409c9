"""Data sets of MedMNIST, read and downloaded by the package `medmnist`."""

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, encoded_rows, fingerprint_of
from common.data.sources.labels import numbered
from common.errors import DataError
from common.system.extras import install_hint
from common.system.files import make_folder
from common.system.hub import quick_failure
from common.system.paths import bract_home

_SIDES = {"": 28, "_64": 64, "_128": 128, "_224": 224}


@dataclass(frozen=True)
class _DataSet:
    """A set in one size as the package describes it."""

    kind: Any
    side: int
    classes: tuple[str, ...]
    url: str


def open_medmnist(config: DataConfig) -> ImageSource:
    """Open a two-dimensional data set of MedMNIST by its name.

    A file on this machine needs no network, and the package is first imported when its images are read.

    Raises:
        DataError: The set is unknown or cannot be downloaded, or the package is not installed.
    """
    name, home = config.source.partition(":")[2], bract_home() / "datasets" / "medmnist"
    folders = [Path(config.path)] if config.path else [Path.home() / ".medmnist", home]
    # The path may also name the file itself.
    folders = [folder.parent if folder.name == f"{name}.npz" else folder for folder in folders]
    file = next((folder / f"{name}.npz" for folder in folders if (folder / f"{name}.npz").is_file()), None)
    file = _download(config, name, home) if file is None else file
    return ImageSource(
        config.source, fingerprint_of([file]), lambda: _read(_find(config.source, name), file), str(file.resolve())
    )


def _find(source: str, name: str) -> _DataSet:
    try:
        from medmnist import INFO, dataset
    except ImportError:
        raise DataError(f"data.source={source!r} needs the package medmnist: {install_hint('medmnist')}") from None
    kinds = {flag: getattr(dataset, info["python_class"]) for flag, info in INFO.items()}
    # Volumes and images with several labels have no place in a classifier of images.
    kinds = {
        flag: kind
        for flag, kind in kinds.items()
        if issubclass(kind, dataset.MedMNIST2D) and "multi-label" not in INFO[flag]["task"]
    }
    for flag, kind in kinds.items():
        suffix = name.removeprefix(flag)
        if name.startswith(flag) and suffix in _SIDES:
            info = INFO[flag]
            return _DataSet(kind, _SIDES[suffix], tuple(info["label"].values()), info[f"url{suffix}"])
    raise DataError(
        f"data.source={source!r}: write medmnist:<name> with one of {', '.join(kinds)}; larger images end in _64, _128 "
        "or _224. chestmnist has several labels an image, and the 3D sets are volumes: neither can be used"
    )


def _download(config: DataConfig, name: str, home: Path) -> Path:
    data_set = _find(config.source, name)
    if config.path:
        raise DataError(f"data.path={config.path!r} holds no {name}.npz: name the folder that holds this file")
    make_folder(home, mode=0o700)
    # First into a folder of its own: a download that stops half-way must not be taken for the file.
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        try:
            with quick_failure(data_set.url):
                data_set.kind("val", root=scratch, size=data_set.side, download=True)
        except Exception as error:
            raise DataError(
                f"data.source={config.source!r}: no {name}.npz in {Path.home() / '.medmnist'} or {home}, and it cannot "
                f"be downloaded ({type(error).__name__})\n"
                f"  download {data_set.url} where there is a network and name its folder with data.path"
            ) from None
        os.replace(Path(scratch) / f"{name}.npz", home / f"{name}.npz")
    return home / f"{name}.npz"


def _read(data_set: _DataSet, file: Path) -> Entries:
    try:
        # NumPy would leave a truncated archive open.
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile
        parts = [data_set.kind(part, root=str(file.parent), size=data_set.side) for part in ("train", "test")]
    # NumPy and zipfile raise many kinds of errors for a damaged file.
    except Exception as error:
        raise DataError(
            f"{file} is damaged or not a file of MedMNIST ({type(error).__name__}): download it again"
        ) from None
    for part in parts:
        _check(file, part.imgs, part.labels)
    labels, classes = np.concatenate([part.labels.reshape(-1) for part in parts]).astype(np.int64), data_set.classes
    if labels.min() < 0 or labels.max() >= len(classes):
        _, classes = numbered([str(number) for number in range(int(labels.max()) + 1)])
    return Entries(
        images=encoded_rows([image for part in parts for image in part.imgs]),
        labels=labels,
        num_train=len(parts[0].imgs),
        classes=classes,
        parts=("train_images", "test_images"),
    )


def _check(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(f"{file} has several labels an image: Bract gives each image one class")
    flat = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not flat or images.dtype != np.uint8 or len(images) != len(labels) or not len(images):
        raise DataError(f"{file} does not hold flat 8-bit images with one label each: it has shape {images.shape}")
