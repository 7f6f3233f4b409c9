"""Data sets of MedMNIST."""

import shutil
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.config.schema import DataConfig
from common.data.sources.base_source import Entries, ImageSource, encoded_rows, fingerprint_of, split_name
from common.data.sources.class_names import MEDMNIST_CLASSES
from common.data.sources.labels import numbered
from common.errors import DataError
from common.system.files import atomic_stream
from common.system.paths import bract_home

MEDMNIST_URL = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
_MEDMNIST_SIZES = ("", "_64", "_128", "_224")


def open_medmnist(config: DataConfig) -> ImageSource:
    """Open a data set of MedMNIST by its name.

    Raises:
        DataError: The set is unknown or cannot be had.
    """
    name, variant = split_name(config.source)
    stem = next((name.removesuffix(size) for size in reversed(_MEDMNIST_SIZES) if name.endswith(size)), name)
    if variant or stem not in MEDMNIST_CLASSES:
        raise DataError(
            f"data.source={config.source!r}: write medmnist:<name> with one of {', '.join(MEDMNIST_CLASSES)}; larger "
            "images end in _64, _128 or _224. chestmnist has several labels an image, and the 3D sets are volumes: "
            "neither can be used"
        )
    file = _medmnist_file(config, name)
    load = lambda: _medmnist_entries(file, MEDMNIST_CLASSES[stem])  # noqa: E731
    return ImageSource(config.source, fingerprint_of([file]), load, str(file.resolve()))


def _medmnist_file(config: DataConfig, name: str) -> Path:
    given = Path(config.path)
    home = bract_home() / "datasets" / "medmnist"
    folders = [given] if config.path else [Path.home() / ".medmnist", home]
    files = [given] if config.path and given.is_file() else [folder / f"{name}.npz" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is not None or config.path:
        if found is None:
            raise DataError(f"data.path={config.path!r} holds no {name}.npz")
        return found
    try:
        return _download(MEDMNIST_URL.format(name=name), home / f"{name}.npz")
    except OSError as error:
        looked = " or ".join(str(folder) for folder in folders)
        raise DataError(
            f"data.source={config.source!r}: no {name}.npz in {looked}, and it cannot be downloaded ({error})\n"
            f"  fetch {MEDMNIST_URL.format(name=name)} where there is a network and name its folder with data.path"
        ) from None


def _download(url: str, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        atomic_stream(file, durable=False, mode=0o600) as stream,
        urllib.request.urlopen(url, timeout=30) as answer,  # noqa: S310
    ):
        shutil.copyfileobj(answer, stream)
    return file


def _medmnist_entries(file: Path, names: tuple[str, ...]) -> Entries:
    try:
        with file.open("rb") as stream, np.load(stream) as saved:
            images = [saved[f"{part}_images"] for part in ("train", "test")]
            labels = [saved[f"{part}_labels"] for part in ("train", "test")]
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is damaged or no file of MedMNIST ({type(error).__name__}): fetch it again") from None
    for part, label in zip(images, labels, strict=True):
        _check_medmnist(file, part, label)
    flat = np.concatenate([label.reshape(-1) for label in labels]).astype(np.int64)
    if flat.min() < 0 or flat.max() >= len(names):
        _, names = numbered([str(number) for number in range(int(flat.max()) + 1)])
    return Entries(
        images=encoded_rows([image for part in images for image in part]),
        labels=flat,
        num_train=len(images[0]),
        classes=names,
        parts=("train_images", "test_images"),
    )


def _check_medmnist(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(f"{file} has several labels an image: Bract gives each image one class")
    flat = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not flat or images.dtype != np.uint8 or len(images) != len(labels) or not len(images):
        raise DataError(f"{file} does not hold flat 8-bit images with one label each: it has shape {images.shape}")
