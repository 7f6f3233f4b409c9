"""Images made ready once a machine, then read by row: what every simulated client shares.

A folder below `$BRACT_HOME/cache` holds one source after preprocessing: inputs
(features of a frozen backbone, or pixels), labels and content digests. Whoever
needs it first makes it under a lock; everybody else maps it into memory, so a
client process that only trains a head needs NumPy and nothing heavier.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config import bract_home
from common.sections import RunConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from common.data.sources import ImageSource

FORMAT = 2  # raise it when the same images would give other inputs


@dataclass(frozen=True)
class Prepared:
    """One source after preprocessing.

    Attributes:
        inputs: (n, d) float32 features, or (n, h, w, c) uint8 pixels.
        labels: (n,) int64.
        digests: (n, 32) uint8, SHA-256 of each image's pixels.
        num_train: The first so many rows are training images; the rest is the
            source's own test set (none if equal to n).
        classes: Class names.
        seconds: What making it took; 0 if it was found ready.
        folder: Where it lies.
    """

    inputs: np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    num_train: int
    classes: tuple[str, ...]
    seconds: float
    folder: Path


def no_progress(total: int, what: str) -> Callable[[int], None]:
    """A progress reporter that says nothing."""
    del total, what
    return lambda _: None


ProgressFactory = Callable[[int, str], Callable[[int], None]]


def _key(config: RunConfig, fingerprint: str, dtype: str) -> str:
    from common.models.backbones import BACKBONES

    info = BACKBONES.get(config.model.backbone)
    parts = [str(FORMAT), fingerprint, config.model.backbone, str(config.data.image_size), dtype]
    parts += [repr(info)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def prepare(config: RunConfig, progress: ProgressFactory = no_progress) -> Prepared:
    """Make a source ready, or map what an earlier run or another process made.

    Args:
        config: The run; data, model and device matter.
        progress: Called with a total and a label; returns what to call with each advance.

    Raises:
        DataError: The source is missing or unusable.
        WeightsError: The backbone's weights are missing or wrong.
    """
    from filelock import FileLock

    pointer = _pointer(config)
    folder = bract_home() / "cache"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / f"{pointer}.lock"):
        started = time.perf_counter()
        target, made = _resolve(config, folder, progress)
        took = time.perf_counter() - started if made else 0.0
        scratch = folder / f".{pointer}.part"
        scratch.write_text(json.dumps({"folder": target.name}))
        os.replace(scratch, folder / f"{pointer}.json")
    return _load(target, took)


def _pointer(config: RunConfig) -> str:
    """Name a request without opening the source, for processes that come later."""
    settings = [config.data.source, config.data.path, str(config.data.image_size), config.model.backbone]
    settings += [config.model.weights, config.system.device]
    return "request-" + hashlib.sha256("\0".join(settings).encode()).hexdigest()[:16]


def prepared_earlier(config: RunConfig) -> Prepared:
    """Map what this run's first process made ready, without importing what made it.

    A simulation prepares the source before it sends the first message; a client
    started on its own prepares it here.
    """
    folder = bract_home() / "cache"
    pointer = folder / f"{_pointer(config)}.json"
    if pointer.is_file():
        target = folder / json.loads(pointer.read_text())["folder"]
        if (target / "meta.json").is_file():
            return _load(target, 0.0)
    return prepare(config)


def _resolve(config: RunConfig, folder: Path, progress: ProgressFactory) -> tuple[Path, bool]:
    from common.data.sources import open_source
    from common.features import choose_device, fast_dtype
    from common.models.backbones import load_backbone

    if config.model.weights and config.model.tuning == "head":
        load_backbone(config.model.backbone, config.model.weights)  # cached features must not hide wrong weights
    source = open_source(config.data)
    device = choose_device(config.system.device)
    dtype = "uint8" if config.model.tuning == "full" else fast_dtype(device)
    target = folder / _key(config, source.fingerprint, dtype)
    if (target / "meta.json").is_file():
        return target, False
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix="making-"))
    try:
        _make(config, source, device, scratch, progress)
        meta = {"num_train": source.num_train, "classes": source.classes, "dtype": dtype, "source": source.name}
        (scratch / "meta.json").touch(mode=0o600)
        (scratch / "meta.json").write_text(json.dumps(meta))
        try:
            os.replace(scratch, target)
        except OSError:
            if not (target / "meta.json").is_file():  # else a request under another name made it meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target, True


def _make(config: RunConfig, source: "ImageSource", device: str, folder: Path, progress: ProgressFactory) -> None:
    """Write labels, digests and inputs; large arrays go straight to their files."""
    from datasets import concatenate_datasets

    from common.features import collect_pixels

    _save(folder, "labels", source.labels())
    images = source.train if source.test is None else concatenate_datasets([source.train, source.test])
    if config.model.tuning == "full":
        report = progress(len(images), "Reading images")
        pixels, digests = collect_pixels(images, side=config.data.image_size, progress=report)
        _save(folder, "inputs", pixels)
        _save(folder, "digests", digests)
    else:
        _extract(config, images, device, folder, progress)


def _extract(config: RunConfig, images: "Dataset", device: str, folder: Path, progress: ProgressFactory) -> None:
    from common.features import extract_features
    from common.models.backbones import BACKBONES, load_backbone

    info = BACKBONES[config.model.backbone]
    backbone = load_backbone(info.name, config.model.weights)
    features = _file(folder, "inputs", np.dtype(np.float32), (len(images), info.num_features))
    digests = _file(folder, "digests", np.dtype(np.uint8), (len(images), 32))
    extract_features(
        images,
        backbone,
        info,
        side=config.data.image_size or info.image_size,
        device=device,
        features=features,
        digests=digests,
        progress=progress(len(images), f"Backbone pass ({info.name})"),
    )
    features.flush()
    digests.flush()


def _file(folder: Path, name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> np.memmap:
    """An array on disk that only its owner can read."""
    file = folder / f"{name}.npy"
    file.touch(mode=0o600)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _save(folder: Path, name: str, array: np.ndarray) -> None:
    _file(folder, name, array.dtype, array.shape)[...] = array


def _load(folder: Path, seconds: float) -> Prepared:
    meta = json.loads((folder / "meta.json").read_text())
    inputs, labels, digests = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("inputs", "labels", "digests")
    )
    return Prepared(inputs, np.asarray(labels), digests, meta["num_train"], tuple(meta["classes"]), seconds, folder)
