"""Sources that others publish: the Hugging Face hub, torchvision's data sets, MedMNIST.

What is on this machine is read from there; what is not is downloaded where there is
a network, and where there is none one error says what to put where.
"""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.config import bract_home
from common.data.class_names import MEDMNIST_CLASSES
from common.data.named import encoded_rows
from common.data.saved import entries_of, is_saved, numbered, open_saved
from common.data.sources import Entries, ImageSource, file_keys, fingerprint_of, image_rows
from common.errors import DataError
from common.sections import DataConfig

MEDMNIST_URL = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
_MEDMNIST_SIZES = ("", "_64", "_128", "_224")
_TRAIN_SPLITS = ("train", "trainval")


def open_instead(config: DataConfig, source: str, missing: DataError) -> ImageSource:
    """The hub's copy of a named source whose own files are not there.

    Args:
        config: Asks for the named source.
        source: The hub's name for it.
        missing: What was wrong with the files.

    Raises:
        DataError: The hub's copy cannot be had either; says both.
    """
    try:
        return OPENERS[source.partition(":")[0]](config.model_copy(update={"source": source}))
    except DataError as error:
        raise DataError(f"{missing}\n  nor is there a copy as {source}: {error}") from None


def _split_name(source: str) -> tuple[str, str]:
    """Name and variant of `hub:name:variant`."""
    _, name, variant = f"{source}::".split(":")[:3]
    if not name:
        raise DataError(f"data.source={source!r}: write a name after the colon; see `bract list sources`")
    return name, variant


# The Hugging Face hub.


def _hugging_face(config: DataConfig) -> ImageSource:
    """Loaded once; then its Arrow files are known, and opening it needs neither network nor imports."""
    name, variant = _split_name(config.source)
    if config.path and is_saved(Path(config.path)):
        return open_saved(config.model_copy(update={"source": config.path, "path": ""}))
    asked = hashlib.sha256(f"{name}\0{variant}\0{config.path}".encode()).hexdigest()[:16]
    pointer = bract_home() / "datasets" / "hf" / f"{asked}.json"
    files = [Path(file) for file in json.loads(pointer.read_text())] if pointer.is_file() else []
    if not files or not all(file.is_file() for file in files):
        files = _arrow_files(_load_hugging_face(config, name, variant))
        pointer.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pointer.touch(mode=0o600)
        pointer.write_text(json.dumps([str(file) for file in files]))

    def load() -> Entries:
        return entries_of(_load_hugging_face(config, name, variant), config.source)

    return ImageSource(config.source, fingerprint_of(files, name, variant), load, config.path)


def _load_hugging_face(config: DataConfig, name: str, variant: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(config.path or name, variant or None)
    except Exception as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
        raise DataError(
            f"data.source={config.source!r} can neither be read from the local cache nor downloaded ({reason})\n"
            "  where there is a network: datasets.load_dataset(...).save_to_disk(folder); copy the folder here and use "
            "data.source=/path/to/folder"
        ) from None


def _arrow_files(data: Any) -> list[Path]:
    found = data.cache_files
    groups = found.values() if isinstance(found, dict) else [found]
    return sorted({Path(item["filename"]) for group in groups for item in group})


# torchvision.


def torchvision_root(name: str) -> Path:
    """Where a data set of torchvision is looked for and downloaded to if `data.path` names no folder."""
    return bract_home() / "datasets" / "torchvision" / name


def _torchvision(config: DataConfig) -> ImageSource:
    name, variant = _split_name(config.source)
    root = Path(config.path) if config.path else torchvision_root(name)
    files = _files_below(root)
    if not files:
        root.mkdir(parents=True, exist_ok=True)
        _torchvision_parts(config, root, name, variant)
        files = _files_below(root)

    def load() -> Entries:
        return _torchvision_entries(config, _torchvision_parts(config, root, name, variant))

    return ImageSource(config.source, fingerprint_of(files, variant), load, str(root.resolve()))


def _files_below(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.is_file())


def _torchvision_parts(config: DataConfig, root: Path, name: str, variant: str) -> list[Any]:
    """The training part and, where the set has one, the test part."""
    from torchvision import datasets

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    known = inspect.signature(kind.__init__).parameters if kind is not None else {}
    if kind is None or "root" not in known or name in ("ImageFolder", "DatasetFolder", "VisionDataset"):
        raise DataError(
            f"data.source={config.source!r}: torchvision has no data set {name!r}; write it as in its documentation, "
            "such as torchvision:CIFAR100 or torchvision:EMNIST:letters"
        )
    common: dict[str, Any] = {"root": str(root)}
    if "loader" in known:
        common["loader"] = str  # gives the file instead of decoding it
    if variant or name == "EMNIST":
        common["split"] = variant or "balanced"
    takes_train = "train" in known or name == "EMNIST"
    choices: list[list[dict[str, Any]]] = [[{}]]
    if takes_train:
        choices = [[{"train": True}], [{"train": False}]]
    elif "split" in known:
        choices = [[{"split": split} for split in _TRAIN_SPLITS], [{"split": "test"}, {"split": "val"}]]
    downloads = "download" in known or "kwargs" in known
    return [_construct(config, kind, [common | choice for choice in part], root, downloads) for part in choices]


def _construct(config: DataConfig, kind: Any, choices: list[dict[str, Any]], root: Path, downloads: bool) -> Any:
    """The data set under the first split name that it knows: from local files, else downloaded."""
    reasons = []
    for arguments in choices:
        for download in (False, True) if downloads else (False,):
            more = {"download": download} if downloads else {}
            try:
                return kind(**arguments, **more)
            except ValueError as error:  # no such split
                reasons.append(str(error))
                break
            except Exception as error:  # torchvision raises whatever the failed step raised
                reasons.append(f"{type(error).__name__}: {error}")
    raise DataError(
        f"data.source={config.source!r} is neither in {root} nor can it be downloaded\n  {reasons[-1]}\n"
        "  put the files there as torchvision lays them out, or name their folder with data.path"
    )


def _torchvision_entries(config: DataConfig, parts: list[Any]) -> Entries:
    pairs = [list(_torchvision_items(part)) for part in parts]
    images = [image for part in pairs for image, _ in part]
    files = [Path(image) for image in images if isinstance(image, str | Path)]
    if len(files) not in (0, len(images)):
        raise DataError(f"data.source={config.source!r} mixes files and arrays")
    names: list[str] = []
    for part, found in zip(parts, pairs, strict=True):
        names += _torchvision_names(config, part, [label for _, label in found])
    classes = tuple(dict.fromkeys([*_listed(parts), *sorted(set(names), key=lambda name: (len(name), name))]))
    index = {name: number for number, name in enumerate(classes)}
    return Entries(
        images=image_rows([{"bytes": None, "path": str(file)} for file in files])
        if files
        else encoded_rows([np.asarray(image) for image in images]),
        labels=np.array([index[name] for name in names], dtype=np.int64),
        num_train=len(pairs[0]),
        classes=classes,
        item_keys=file_keys(files) if files else None,
        root=str(parts[0].root) if files else "",
        parts=(f"the training part of {config.source}", f"the test part of {config.source}"),
    )


def _listed(parts: list[Any]) -> list[str]:
    """Class names that the parts list themselves, those of the training part first."""
    return [str(name) for part in parts for name in getattr(part, "classes", None) or ()]


def _torchvision_names(config: DataConfig, part: Any, labels: list[Any]) -> list[str]:
    """The class name of each label; a number counts along the part's own list, which may differ between parts."""
    listed = _listed([part])
    if any(isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0 for label in labels):
        raise DataError(f"data.source={config.source!r} does not have one class an image: Bract classifies images")
    if listed and max(labels, default=-1) >= len(listed):
        raise DataError(f"data.source={config.source!r} has labels beyond its list of {len(listed)} classes")
    return [listed[label] if listed else str(label) for label in labels]


def _torchvision_items(part: Any) -> Any:
    """Pairs of image and label; the image is a file where the set lists its files."""
    samples = getattr(part, "_samples", None)
    if samples and isinstance(samples[0], tuple) and isinstance(samples[0][0], str | Path):
        return samples
    if hasattr(part, "_images") and hasattr(part, "_labels"):
        return zip(part._images, part._labels, strict=True)
    return (part[row] for row in range(len(part)))


# MedMNIST.


def _medmnist(config: DataConfig) -> ImageSource:
    name, variant = _split_name(config.source)
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
    handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream, urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
            shutil.copyfileobj(answer, stream)
        os.replace(scratch, file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
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


OPENERS: dict[str, Callable[[DataConfig], ImageSource]] = {
    "hf": _hugging_face,
    "torchvision": _torchvision,
    "medmnist": _medmnist,
}
