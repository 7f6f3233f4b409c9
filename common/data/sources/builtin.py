"""Built-in sources with a name, read from local files."""

import gzip
import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import (
    Entries,
    ImageSource,
    encoded_rows,
    fingerprint_of,
    first_folder,
    refuse_path,
)
from common.data.sources.class_names import CIFAR10_CLASSES, CIFAR100_CLASSES, FASHION_CLASSES
from common.data.sources.torchvision_sets import open_instead, torchvision_root
from common.errors import DataError
from common.system.paths import bract_home

_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw", "data/fashion-mnist")
_MNIST_FOLDERS = ("/usr/share/datasets/mnist", "data/MNIST/raw", "data/mnist")
_IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_PARQUET_FILES = ("train.parquet", "test.parquet")
_DIGITS_FILE = Path("datasets", "data", "digits.csv.gz")


def open_digits(config: DataConfig) -> ImageSource:
    """Open the digits that scikit-learn brings along.

    Raises:
        DataError: `data.path` is set, or scikit-learn is not installed.
    """
    refuse_path(config, "the images ship with scikit-learn")
    # Looks for the package without importing it, which would take a second.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("data.source='digits' needs scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / _DIGITS_FILE

    def load() -> Entries:
        # As `sklearn.datasets.load_digits` does: 64 values from 0 to 16 and the digit.
        rows = np.loadtxt(file, delimiter=",")
        pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        classes = tuple(str(name) for name in range(10))
        parts = ("digits", "digits")
        return Entries(encoded_rows(pixels), rows[:, -1].astype(np.int64), len(pixels), classes, parts=parts)

    return ImageSource("digits", fingerprint_of([file], "digits"), load, str(file))


def _read_idx(file: Path) -> np.ndarray:
    """Read one IDX file of bytes (yann.lecun.com/exdb/mnist), gzipped or not."""
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file} is damaged or not a gzip file: download it again") from None
    rank = raw[3] if len(raw) >= 4 else 0
    if raw[:3] != b"\0\0\x08" or not 1 <= rank <= 3 or len(raw) < 4 + 4 * rank:
        raise DataError(f"{file} is not an IDX file of bytes")
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4).astype(int)
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
    if data.size != int(np.prod(shape)):
        raise DataError(f"{file} is cut short: {data.size} bytes of {int(np.prod(shape))}")
    return data.reshape(shape)


def _idx_source(name: str, folder: Path, names: Sequence[str], classes: tuple[str, ...]) -> ImageSource:
    """Return a source of training and test images and labels, four IDX files."""
    files = [folder / file for file in names]

    def load() -> Entries:
        images, labels = [_read_idx(file) for file in files[::2]], [_read_idx(file) for file in files[1::2]]
        for part, label in zip(images, labels, strict=True):
            shapes_fit = part.ndim == 3 and label.ndim == 1 and len(part) == len(label) > 0
            if not shapes_fit or label.max() >= len(classes):
                raise DataError(f"{folder}: images and labels do not belong together")
        rows = encoded_rows([image for part in images for image in part])
        parts = (names[0], names[2])
        return Entries(rows, np.concatenate(labels).astype(np.int64), len(images[0]), classes, parts=parts)

    return ImageSource(name, fingerprint_of(files), load, str(folder.resolve()))


def open_fashion_mnist(config: DataConfig) -> ImageSource:
    """Open Fashion-MNIST from its four IDX files.

    Raises:
        DataError: No known folder holds the files.
    """
    folder, names = _idx_folder(
        config.path,
        _FASHION_FOLDERS,
        "Debian and Ubuntu: apt-get install dataset-fashion-mnist; else put the four files in a folder "
        "and name it with data.path",
    )
    return _idx_source("fashion-mnist", folder, names, FASHION_CLASSES)


def _idx_folder(path: str, usual: Sequence[str | Path], advice: str) -> tuple[Path, list[str]]:
    """Return the folder with all four files and their names, gzipped or plain."""
    zipped = [f"{name}.gz" for name in _IDX_FILES]
    for names in (zipped, list(_IDX_FILES)):
        for folder in [path] if path else usual:
            if all((Path(folder) / name).is_file() for name in names):
                return Path(folder), names
    return first_folder(path, usual, zipped, advice), zipped


def open_mnist(config: DataConfig) -> ImageSource:
    """Open MNIST from its four IDX files or from torchvision.

    Raises:
        DataError: No known folder holds the files, and torchvision cannot download them.
    """
    usual: list[str | Path] = [*_MNIST_FOLDERS, torchvision_root("MNIST") / "MNIST" / "raw"]
    try:
        folder, names = _idx_folder(config.path, usual, "put the four files in a folder and name it with data.path")
    except DataError as missing:
        if config.path:
            raise
        return open_instead(config, "torchvision:MNIST", missing)
    return _idx_source("mnist", folder, names, tuple("0123456789"))


def open_cifar10(config: DataConfig) -> ImageSource:
    """Open CIFAR-10 from its two Parquet files.

    Raises:
        DataError: No known folder holds the files.
    """
    advice = "put CIFAR-10 there as parquet with columns img and label, and name the folder with data.path"
    folder = first_folder(config.path, ("data/cifar10",), _PARQUET_FILES, advice)
    return _parquet_source("cifar10", folder, "label", CIFAR10_CLASSES)


def open_cifar100(config: DataConfig) -> ImageSource:
    """Open CIFAR-100 from its two Parquet files or from torchvision.

    Raises:
        DataError: No known folder holds the files, and torchvision cannot download them.
    """
    advice = "put CIFAR-100 there as parquet with columns img and fine_label, and name the folder with data.path"
    try:
        folder = first_folder(config.path, ("data/cifar100",), _PARQUET_FILES, advice)
    except DataError as missing:
        return open_instead(config, "torchvision:CIFAR100", missing)
    return _parquet_source("cifar100", folder, "fine_label", CIFAR100_CLASSES)


def _parquet_source(name: str, folder: Path, label: str, classes: tuple[str, ...]) -> ImageSource:
    """Return a source of two Parquet files with encoded images in the column `img`."""
    files = [folder / file for file in _PARQUET_FILES]

    def load() -> Entries:
        from datasets import concatenate_datasets

        try:
            train, test = (_read_parquet(file, label) for file in files)
        except Exception as error:
            raise DataError(
                f"{folder}: the parquet files need columns img and {label} ({type(error).__name__})"
            ) from None
        both = concatenate_datasets([train, test])
        labels = np.asarray(both[label], dtype=np.int64)
        if not len(train) or labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{folder}: {label} must lie in 0..{len(classes) - 1}, and there must be training images")
        return Entries(both.select_columns("image"), labels, len(train), classes, parts=_PARQUET_FILES)

    return ImageSource(name, fingerprint_of(files), load, str(folder.resolve()))


def _read_parquet(file: Path, label: str) -> Any:
    from datasets import Dataset, Image

    rows = Dataset.from_parquet(str(file), columns=["img", label], cache_dir=str(bract_home() / "datasets"))
    return rows.cast_column("img", Image(decode=False)).rename_column("img", "image")
