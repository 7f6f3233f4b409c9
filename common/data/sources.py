"""Named sources of labelled images, all as `datasets.Dataset` with columns image and label.

Nothing is downloaded here: digits ship inside scikit-learn, the other sources
are read from files that the user names or that a system package installed.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.config import bract_home
from common.errors import DataError
from common.sections import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw", "data/fashion-mnist")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
_CIFAR_FOLDERS = ("data/cifar10",)


Parts = tuple["Dataset", "Dataset | None"]


@dataclass(frozen=True)
class ImageSource:
    """Labelled images in a fixed order, read when they are first needed.

    Attributes:
        name: What the user called it.
        fingerprint: Hex digest that changes when the files change.
        classes: Class names; a label is an index into them.
        load: Reads the images; use `train` and `test`.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    load: Callable[[], Parts]

    @cached_property
    def _parts(self) -> Parts:
        return self.load()

    @property
    def train(self) -> "Dataset":
        """Images that clients train on (and hold out from, if there is no `test`)."""
        return self._parts[0]

    @property
    def test(self) -> "Dataset | None":
        """The source's own test images, if it has them."""
        return self._parts[1]

    def labels(self) -> np.ndarray:
        """Labels of train then test, (n,) int64.

        Raises:
            DataError: There are images of one class only.
        """
        parts = [part for part in self._parts if part is not None]
        labels = np.concatenate([np.asarray(part["label"], dtype=np.int64) for part in parts])
        present = len(np.unique(labels))
        if present < 2:
            raise DataError(
                f"data.source={self.name!r} holds images of {present} class: a classifier needs at least two"
            )
        return labels

    @property
    def num_train(self) -> int:
        """How many of the images, from the first, belong to `train`."""
        return len(self.train)


def open_source(config: DataConfig) -> ImageSource:
    """Open the source that `data.source` and `data.path` name.

    Raises:
        DataError: The name is unknown, files are missing, or there are no images.
    """
    if config.source in _SOURCES:
        return _SOURCES[config.source](config.path)
    if "/" in config.source or Path(config.source).is_dir():
        return _folder(config.source)
    raise DataError(
        f"data.source={config.source!r} is neither a known source ({', '.join(_SOURCES)}) nor a folder of images\n"
        "  a folder needs one sub-folder a class: data.source=/path/to/folder"
    )


def _dataset(images: Sequence[object], labels: np.ndarray) -> "Dataset":
    from datasets import Dataset, Features, Image, Value

    features = Features({"image": Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": list(images), "label": labels.tolist()}, features=features)


def _digits(path: str) -> ImageSource:
    from PIL import Image
    from sklearn.datasets import load_digits

    if path:
        raise DataError("data.path does not go with data.source='digits': the images ship with scikit-learn")
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in bunch.target_names)

    def load() -> Parts:
        return _dataset([Image.fromarray(image) for image in pixels], bunch.target.astype(np.int64)), None

    return ImageSource("digits", hashlib.sha256(pixels.tobytes()).hexdigest(), classes, load)


def _first_folder(path: str, usual: tuple[str, ...], wanted: list[str], help_text: str) -> Path:
    folders = [Path(path)] if path else [Path(folder) for folder in usual]
    for folder in folders:
        if all((folder / name).is_file() for name in wanted):
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(f"missing {', '.join(wanted)}\n  looked in: {looked}\n  {help_text}")


def _fingerprint_files(files: list[Path]) -> str:
    parts = []
    for file in files:
        state = file.stat()
        parts.append(f"{file.absolute()}\0{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_idx(file: Path) -> np.ndarray:
    """One gzipped IDX file of bytes. Source: yann.lecun.com/exdb/mnist, file format."""
    try:
        raw = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file} is damaged or no gzip file: fetch it again") from None
    rank = raw[3] if len(raw) >= 4 else 0
    if raw[:3] != b"\0\0\x08" or not 1 <= rank <= 3 or len(raw) < 4 + 4 * rank:
        raise DataError(f"{file} is not an IDX file of bytes")
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4).astype(int)
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
    if data.size != int(np.prod(shape)):
        raise DataError(f"{file} is cut short: {data.size} bytes of {int(np.prod(shape))}")
    return data.reshape(shape)


def _fashion_mnist(path: str) -> ImageSource:
    from PIL import Image

    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folder = _first_folder(
        path,
        _FASHION_FOLDERS,
        names,
        "Debian and Ubuntu: apt-get install dataset-fashion-mnist; else put the four files in a folder "
        "and name it with data.path",
    )

    def load() -> Parts:
        images, labels = [_read_idx(folder / name) for name in names[::2]], [_read_idx(folder / n) for n in names[1::2]]
        for part, label in zip(images, labels, strict=True):
            if len(part) != len(label) or label.max() >= len(FASHION_CLASSES):
                raise DataError(f"{folder}: images and labels do not belong together")
        train, test = (
            _dataset([Image.fromarray(image) for image in part], label.astype(np.int64))
            for part, label in zip(images, labels, strict=True)
        )
        return train, test

    fingerprint = _fingerprint_files([folder / name for name in names])
    return ImageSource("fashion-mnist", fingerprint, FASHION_CLASSES, load)


def _cifar10(path: str) -> ImageSource:
    from datasets import Dataset, Features, Image, Value

    names = ["train.parquet", "test.parquet"]
    folder = _first_folder(
        path,
        _CIFAR_FOLDERS,
        names,
        "put CIFAR-10 there as parquet with columns img and label, and name the folder with data.path",
    )
    columns = Features({"img": Image(), "label": Value("int64")})
    cache = str(bract_home() / "datasets")

    def load() -> Parts:
        try:
            train, test = (
                Dataset.from_parquet(str(folder / name), features=columns, cache_dir=cache) for name in names
            )
        except Exception as error:
            raise DataError(
                f"{folder}: the parquet files need columns img and label ({type(error).__name__})"
            ) from None
        return train.rename_column("img", "image"), test.rename_column("img", "image")

    fingerprint = _fingerprint_files([folder / name for name in names])
    return ImageSource("cifar10", fingerprint, CIFAR10_CLASSES, load)


def _folder(path: str) -> ImageSource:
    """A folder with one sub-folder a class, optionally below train/ and test/."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"data.source={path!r}: there is no such folder")
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    inside = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    if inside and not has_parts and set(inside) <= _SPLIT_NAMES:
        raise DataError(
            f"data.source={path!r} holds {', '.join(inside)}: Bract reads train/ and test/ together, or one folder a "
            f"class\n  name one part, such as {root / inside[0]}, or rename the parts to train and test"
        )
    parts = [root / "train", root / "test"] if has_parts else [root]
    files = [_class_files(part) for part in parts]
    if not files[0]:
        raise DataError(
            f"data.source={path!r}: no images found\n  expected one sub-folder a class, with files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    classes = tuple(sorted({name for part in files for _, name in part}))

    def load() -> Parts:
        sets = [
            _dataset([str(file) for file, _ in part], np.array([classes.index(name) for _, name in part]))
            for part in files
        ]
        return sets[0], sets[1] if has_parts else None

    fingerprint = _fingerprint_files([file for part in files for file, _ in part])
    return ImageSource(root.name, fingerprint, classes, load)


def _class_files(root: Path) -> list[tuple[Path, str]]:
    return [
        (file, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
        for file in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
    ]


_SOURCES: dict[str, Callable[[str], ImageSource]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
KNOWN_SOURCES = tuple(_SOURCES)
