"""Data sets of torchvision, read from disk or downloaded."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import (
    Entries,
    ImageSource,
    encoded_rows,
    file_keys,
    fingerprint_of,
    image_rows,
    split_name,
)
from common.errors import DataError
from common.system.files import make_folder
from common.system.paths import bract_home

_TRAIN_SPLITS = ("train", "trainval")


def open_instead(config: DataConfig, source: str, missing: DataError) -> ImageSource:
    """Open torchvision's copy of a named source whose own files are missing.

    Raises:
        DataError: The copy cannot be opened either; the message holds both errors.
    """
    try:
        return open_torchvision(config.model_copy(update={"source": source}))
    except DataError as error:
        raise DataError(f"{missing}\n  nor is there a copy as {source}: {error}") from None


def torchvision_root(name: str) -> Path:
    """Return the folder of a torchvision set if `data.path` names no other."""
    return bract_home() / "datasets" / "torchvision" / name


def open_torchvision(config: DataConfig) -> ImageSource:
    """Open a data set of torchvision by its class name.

    Raises:
        DataError: The set is unknown, or is neither on this machine nor can it be downloaded.
    """
    name, variant = split_name(config.source)
    root = Path(config.path) if config.path else torchvision_root(name)
    files = _files_below(root)
    if not files:
        make_folder(root)
        _torchvision_parts(config, root, name, variant)
        files = _files_below(root)

    def load() -> Entries:
        return _torchvision_entries(config, _torchvision_parts(config, root, name, variant))

    return ImageSource(config.source, fingerprint_of(files, variant), load, str(root.resolve()))


def _files_below(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.is_file())


def _torchvision_parts(config: DataConfig, root: Path, name: str, variant: str) -> list[Any]:
    """Return the training part and any test part."""
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
        # `str` returns the file instead of decoding it: damaged files are then faults of single entries.
        common["loader"] = str
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
    """Return the data set under the first known split name, local files first."""
    reasons, unknown = [], []
    for arguments in choices:
        for download in (False, True) if downloads else (False,):
            more = {"download": download} if downloads else {}
            try:
                return kind(**arguments, **more)
            # The set has no such split. That is no reason where another split could not be had.
            except ValueError as error:
                unknown.append(str(error))
                break
            # torchvision passes on any error of the failed step.
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {error}")
    raise DataError(
        f"data.source={config.source!r} is neither in {root} nor can it be downloaded\n  {(reasons or unknown)[-1]}\n"
        "  put the files there as torchvision lays them out, or name their folder with data.path"
    )


def _torchvision_entries(config: DataConfig, parts: list[Any]) -> Entries:
    pairs = [list(_torchvision_items(part)) for part in parts]
    images = [image for part in pairs for image, _ in part]
    files = [Path(image) for image in images if isinstance(image, str | Path)]
    if len(files) not in (0, len(images)):
        raise DataError(f"data.source={config.source!r} mixes files and arrays")
    names: list[str] = []
    for part, items in zip(parts, pairs, strict=True):
        names += _torchvision_names(config, part, [label for _, label in items])
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
    """Return the class names that the parts themselves list."""
    return [str(name) for part in parts for name in getattr(part, "classes", None) or ()]


def _torchvision_names(config: DataConfig, part: Any, labels: list[Any]) -> list[str]:
    """Return the class name of each label."""
    # A label counts along the part's own list, and the lists of two parts may differ.
    listed = _listed([part])
    if any(isinstance(label, bool) or not isinstance(label, int | np.integer) or label < 0 for label in labels):
        raise DataError(f"data.source={config.source!r} does not have one class an image: Bract classifies images")
    if listed and max(labels, default=-1) >= len(listed):
        raise DataError(f"data.source={config.source!r} has labels beyond its list of {len(listed)} classes")
    return [listed[label] if listed else str(label) for label in labels]


def _torchvision_items(part: Any) -> Any:
    """Return pairs of image and label, with files where the set lists files."""
    samples = getattr(part, "_samples", None)
    if samples and isinstance(samples[0], tuple) and isinstance(samples[0][0], str | Path):
        return samples
    if hasattr(part, "_images") and hasattr(part, "_labels"):
        return zip(part._images, part._labels, strict=True)
    return (part[row] for row in range(len(part)))
