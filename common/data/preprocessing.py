"""Preparation of a source's images as the inputs that models are trained on.

Each image is decoded once to learn what it is (`common.data.scan`) and passes the backbone once
(`common.data.feature_extraction`). Both results are cached by content, so a new seed, partition or run re-uses them,
and a changed image invalidates only itself. A client process whose images are cached needs NumPy and nothing heavier.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import RunConfig
from common.config.sections import DataConfig, ModelConfig
from common.data.decoding import BadImage, read_image
from common.data.scan import Scan, refuse_if_too_bad, refuse_single_class, scan_source
from common.data.sources.base_source import ImageSource
from common.data.sources.joined import open_joined, without_images
from common.data.sources.registry import open_source
from common.data.tones.rendering import FULL_DEPTH, Tones, render, tones_of
from common.data.tones.value_facts import OPAQUE
from common.errors import ConfigError, DataError
from common.system.content_store import ContentStore, StoredRows
from common.system.files import write_atomic
from common.system.paths import cache_folder
from common.system.progress import ProgressFactory, no_progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from common.data.feature_extraction import FeatureExtractor, PixelCollector, Progress
    from common.models.backbone_info import BackboneInfo
    from common.models.classifier import Network

_logger = logging.getLogger("bract")
# What the inputs of files that were closed after their scan are stored under.
_CLOSED = np.frombuffer(hashlib.sha256(b"a file that was closed").digest(), np.uint8)
FORMAT = 4  # raise it when the same images would give other inputs


@dataclass(frozen=True)
class Prepared:
    """A source together with the inputs that models are trained on.

    The inputs are (n, d) float32 features, or (n, side, side, channels) uint8 pixels, read when indexed. The scan has
    the n entries, unusable ones included. The key names the source's content and its class list. Images that no file
    holds have no source.
    """

    inputs: StoredRows
    scan: Scan
    seconds: float
    key: str
    source: ImageSource | None = None


@dataclass(frozen=True)
class _InputFormat:
    """The format of the inputs with the key of their cache."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    interpolation: str
    side: int


def prepare(
    config: RunConfig,
    progress: ProgressFactory = no_progress,
    *,
    shows_nothing: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Prepared:
    """Prepare a source's images as inputs for a run's model.

    Inputs that an earlier run has cached are read, not computed again. Under `shows_nothing`, success and the inputs'
    shape follow from the configuration alone, so that a server cannot ask about a client's images by its settings.
    `shape` is that of the inputs of `cnn`, None where it follows from the images.

    Raises:
        ConfigError: `shows_nothing` is set and the configuration leaves the images' size open.
        DataError: The source is missing or unusable, or too many of its files are bad.
        WeightsError: The backbone's weights are missing or wrong.
    """
    started = time.perf_counter()
    source, info = (open_joined if shows_nothing else open_source)(config.data), None
    # Before the scan, which may take minutes: wrong weights should stop a run at once.
    if config.model.backbone != "cnn":
        from common.models.backbone_info import backbone_info

        info = backbone_info(config.backbone_spec)
    source, scan = _scanned(source, config.data, progress, shows_nothing=shows_nothing)
    if not shows_nothing:
        _log_remarks(source)
        refuse_if_too_bad(scan, max_bad_fraction=config.data.max_bad_fraction)
        refuse_single_class(scan)
    if info is None:
        side = config.data.image_size
        wanted = _public_cnn_pixels(side) if shows_nothing else _cnn_pixels(side, scan, shape)
    elif config.caches_features:
        wanted = _features(info, config.model, config.system.device)
    else:
        wanted = _pixels(info.image_size, 3, info.interpolation)

    def network() -> "Network":
        from common.models.classifier import feature_network

        return feature_network(config.model, config.backbone_spec)

    tones = tones_of(config.data)
    names = _row_names(scan, tones)
    store = ContentStore(cache_folder("inputs", wanted.key), wanted.shape, np.dtype(wanted.dtype))
    _describe(store, config.model.backbone, wanted)
    inputs = store.rows_of(names)
    missing = np.flatnonzero(scan.usable & inputs.absent)
    if len(missing):
        label = "Scaling images" if wanted.dtype == "uint8" else f"Backbone pass ({config.model.backbone})"
        with _collector(store, wanted, network, config.system.device, progress(len(missing), label)) as collector:
            for row, cell in source.entries.cells(missing):
                image = _rendered(cell, tones, or_black=shows_nothing)
                # Black pixels under the image's own name would stay in the cache when the file is open again.
                names[row] = _CLOSED if image is None else names[row]
                collector.push(image or _black(), names[row].tobytes())
        inputs = store.rows_of(names)
    key = hashlib.sha256(f"{scan.fingerprint}\x1f{scan.classes}".encode()).hexdigest()[:24]
    return Prepared(inputs, scan, time.perf_counter() - started, key, source)


def _scanned(
    source: ImageSource, data: DataConfig, progress: ProgressFactory, *, shows_nothing: bool
) -> tuple[ImageSource, Scan]:
    """Scan a source, without any image where a fault must not show."""
    try:
        return source, scan_source(source, progress=progress)
    except DataError as error:
        if not shows_nothing:
            raise
        source = without_images(data, error)
        return source, scan_source(source, progress=progress)


def _rendered(cell: Mapping[str, Any], tones: Tones, *, or_black: bool) -> "Image | None":
    """Return an image as models see it, None for one that shall be black."""
    try:
        return render(read_image(cell), tones)
    except BadImage:
        if not or_black:
            raise
        # The file was closed after its scan. Another answer would tell a server so, for some settings only.
        return None


def _black() -> "Image":
    from PIL import Image

    return Image.new("L", (8, 8))


def _log_remarks(source: ImageSource) -> None:
    # Remarks on classes load heavy libraries, which a cached run that shows no warnings does without.
    if _logger.isEnabledFor(logging.WARNING):
        for remark in source.remarks():
            _logger.warning(remark)


def _row_names(scan: Scan, tones: Tones) -> np.ndarray:
    """Return what each entry's inputs are stored under, (n, 32) uint8.

    An image that the tones show as the canonical decode does is named by its pixels. Others are named by their file
    and the tones, because equal canonical pixels may differ in the bits that the tones show.
    """
    deep, window = np.abs(scan.depths) > 8, tones.gray_window is not None
    shown_otherwise = ~scan.plain | deep & (tones.bit_depth < FULL_DEPTH or window) | (scan.channels == 1) & window
    shown_otherwise |= (scan.transparency != OPAQUE) & (tones.background != "keep")
    names = scan.digests.copy()
    for row in np.flatnonzero(shown_otherwise & scan.usable):
        named = hashlib.sha256(repr(tones).encode() + scan.file_digests[row].tobytes())
        names[row] = np.frombuffer(named.digest(), np.uint8)
    return names


def _features(info: "BackboneInfo", model: ModelConfig, device: str) -> _InputFormat:
    """Return the format of cached features."""
    size = info.num_flattened if model.head == "mlp" else info.num_features
    # Device and engine belong to the key, because features differ in their last bits between them.
    scaling = (info.image_size, info.mean, info.std, info.interpolation)
    key = _key(FORMAT, "features", info.sha256, *scaling, model.head, model.backbone, device, info.engine)
    return _InputFormat(key, (size,), "float32", info.interpolation, info.image_size)


def _pixels(side: int, channels: int, interpolation: str = "bicubic") -> _InputFormat:
    """Return the format of square images that a network is trained on."""
    key = _key(FORMAT, "pixels", side, channels, interpolation)
    return _InputFormat(key, (side, side, channels), "uint8", interpolation, side)


def _cnn_pixels(side: int | None, scan: Scan, shape: tuple[int, ...] | None) -> _InputFormat:
    """Return the format of images for the small network."""
    if shape is not None:
        return _pixels(shape[0], shape[2])
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
    return _pixels(side, int(scan.channels[scan.usable].max()))


def _public_cnn_pixels(side: int | None) -> _InputFormat:
    """Return a format that depends on no image."""
    if side is None:
        raise ConfigError(
            "a run over clients with images of their own needs data.image-size with model.backbone='cnn': the server "
            "must not learn the size from the images"
        )
    return _pixels(side, 3)


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:24]


def _describe(store: ContentStore, backbone: str, wanted: _InputFormat) -> None:
    """Write a description beside the rows for `bract cache list`."""
    file = store.folder / "about.json"
    if not file.is_file():
        kind = f"features of {backbone}" if wanted.dtype == "float32" else "pixels"
        about: dict[str, Any] = {"kind": kind, "side": wanted.side, "shape": wanted.shape, "dtype": wanted.dtype}
        write_atomic(file, json.dumps(about), durable=False, mode=0o600)


def _collector(
    store: ContentStore, wanted: _InputFormat, network: Callable[[], "Network"], device: str, progress: "Progress"
) -> "FeatureExtractor | PixelCollector":
    from common.data.feature_extraction import FeatureExtractor, PixelCollector, choose_device

    side, interpolation = wanted.side, wanted.interpolation
    if wanted.dtype == "uint8":
        return PixelCollector(
            store, side=side, channels=wanted.shape[2], interpolation=interpolation, progress=progress
        )
    from common.models.engines.acceleration import accelerated

    device = choose_device(device)
    fast, dtype = accelerated(network(), device)
    return FeatureExtractor(
        fast, store, side=side, interpolation=interpolation, device=device, progress=progress, dtype=dtype
    )
