"""Formats of the inputs of models with the keys of their caches."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.sections import ModelConfig
from common.data.scan import Scan
from common.errors import ConfigError, DataError
from common.system.content_store import ContentStore
from common.system.files import write_atomic
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from common.data.feature_extraction import FeatureExtractor, PixelCollector, Progress
    from common.models.backbone_info import BackboneInfo
    from common.models.classifier import Network

FORMAT = 4  # raise it when the same images would give other inputs


@dataclass(frozen=True)
class InputFormat:
    """The format of the inputs with the key of their cache.

    Features are made of images of `side` pixels with three channels. Pixels are stored as they are scaled.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    interpolation: str
    side: int

    @property
    def channels(self) -> int:
        """Channels of the scaled images."""
        return self.shape[2] if len(self.shape) == 3 else 3


def features_format(info: "BackboneInfo", model: ModelConfig, device: str) -> InputFormat:
    """Return the format of cached features."""
    size = info.num_flattened if model.head == "mlp" else info.num_features
    # Device and engine belong to the key, because features differ in their last bits between them.
    scaling = (info.image_size, info.mean, info.std, info.interpolation)
    key = _key(FORMAT, "features", info.sha256, *scaling, model.head, model.backbone, device, info.engine)
    return InputFormat(key, (size,), "float32", info.interpolation, info.image_size)


def pixels_format(side: int, channels: int, interpolation: str = "bicubic") -> InputFormat:
    """Return the format of square images that a network is trained on."""
    key = _key(FORMAT, "pixels", side, channels, interpolation)
    return InputFormat(key, (side, side, channels), "uint8", interpolation, side)


def cnn_format(side: int | None, scan: Scan, shape: tuple[int, ...] | None) -> InputFormat:
    """Return the format of images for the small network.

    Raises:
        DataError: The images leave it open, because they differ in size or are not square.
    """
    if shape is not None:
        return pixels_format(shape[0], shape[2])
    widths, heights = scan.widths[scan.usable], scan.heights[scan.usable]
    if side is None:
        if len(np.unique(widths)) > 1 or len(np.unique(heights)) > 1:
            raise DataError("the images differ in size: set data.image-size to the side that all of them shall get")
        if widths[0] != heights[0] or widths[0] < 4:
            raise DataError(
                f"images of {widths[0]} x {heights[0]} pixels: set data.image-size to the side of the squares "
                "(at least 4) that they shall become"
            )
        side = int(widths[0])
    return pixels_format(side, int(scan.channels[scan.usable].max()))


def public_cnn_format(side: int | None) -> InputFormat:
    """Return a format that depends on no image.

    Raises:
        ConfigError: The side is open.
    """
    if side is None:
        raise ConfigError(
            "a run over clients with images of their own needs data.image-size with model.backbone='cnn': the server "
            "must not learn the size from the images"
        )
    return pixels_format(side, 3)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:24]


def open_store(wanted: InputFormat, backbone: str) -> ContentStore:
    """Open the store of inputs of one format, described for `bract cache list`."""
    store = ContentStore(cache_folder("inputs", wanted.key), wanted.shape, np.dtype(wanted.dtype))
    file = store.folder / "about.json"
    if not file.is_file():
        kind = f"features of {backbone}" if wanted.dtype == "float32" else "pixels"
        about: dict[str, Any] = {"kind": kind, "side": wanted.side, "shape": wanted.shape, "dtype": wanted.dtype}
        write_atomic(file, json.dumps(about), durable=False, mode=0o600)
    return store


def open_collector(
    store: ContentStore, wanted: InputFormat, network: "Callable[[], Network]", device: str, progress: "Progress"
) -> "FeatureExtractor | PixelCollector":
    """Open what turns scaled images into stored inputs.

    Raises:
        DataError: The device is not present.
    """
    from common.data.feature_extraction import FeatureExtractor, PixelCollector, choose_device

    if wanted.dtype == "uint8":
        return PixelCollector(store, progress)
    from common.models.engines.acceleration import accelerated

    device = choose_device(device)
    fast, dtype = accelerated(network(), device)
    side, interpolation = wanted.side, wanted.interpolation
    return FeatureExtractor(
        fast, store, side=side, interpolation=interpolation, device=device, progress=progress, dtype=dtype
    )
