"""A run's images made ready, then read by row: what every simulated client shares.

Each image is decoded once to learn what it is (`common.data.scan`) and passes the
backbone once in its life (`common.data.feature_extraction`); both are remembered by content, so a
new seed, partition or run re-uses them and a changed image invalidates only itself.
A client process whose images are known needs NumPy and nothing heavier.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import RunConfig, split_list
from common.data.scan import Fault, Scan, refuse_if_too_bad, refuse_single_class, scan_source, source_entries
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from common.errors import ConfigError, DataError
from common.system.content_store import ContentStore, StoredRows
from common.system.files import write_atomic
from common.system.paths import cache_folder
from common.system.progress import ProgressFactory, no_progress

if TYPE_CHECKING:
    from common.data.feature_extraction import FeatureExtractor, PixelCollector

FORMAT = 4  # raise it when the same images would give other inputs


@dataclass(frozen=True)
class Prepared:
    """One source after preprocessing; every array covers all entries, bad ones included.

    Attributes:
        inputs: (n, d) float32 features, or (n, side, side, channels) uint8 pixels, read when indexed.
        labels: (n,) int64; -1 where the class is not one of `classes`.
        digests: (n, 32) uint8, SHA-256 of each image's pixels.
        file_digests: (n, 32) uint8, SHA-256 of each file's bytes.
        usable: (n,) bool; the others are listed in `faults`.
        num_train: The first so many entries are training images; the rest is the
            source's own test set (none if equal to n).
        classes: Class names.
        unit_digests: (n, 32) uint8, hash of each entry's unit; None if every image is its own.
        owners: (n,) int32 natural client of each entry, or None.
        client_names: What `owners` counts.
        faults: What was skipped, and why; never leaves this machine.
        seconds: What making it took; a fraction of a second if it was found ready.
        key: Names the source's content.
    """

    inputs: StoredRows
    labels: np.ndarray
    digests: np.ndarray
    file_digests: np.ndarray
    usable: np.ndarray
    num_train: int
    classes: tuple[str, ...]
    unit_digests: np.ndarray | None
    owners: np.ndarray | None
    client_names: tuple[str, ...]
    faults: tuple[Fault, ...]
    seconds: float
    key: str


@dataclass(frozen=True)
class _Inputs:
    """What one row of input is, and by what it is found."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    interpolation: str
    side: int


def prepare(config: RunConfig, progress: ProgressFactory = no_progress, *, shows_nothing: bool = False) -> Prepared:
    """Make a source ready, or map what an earlier run or another process made.

    Args:
        config: Source, backbone and way of tuning matter.
        progress: Called with a total and a label; returns what to call with each advance.
        shows_nothing: Whether this succeeds, and the inputs' shape, follow from the configuration alone,
            not from what the images are: a server must not be able to ask about them by its settings.

    Raises:
        ConfigError: Nothing shall show, and the configuration leaves something to the images.
        DataError: The source is missing or unusable, or too many of its files are bad.
        WeightsError: The backbone's weights are missing or wrong.
    """
    started = time.perf_counter()
    source = open_source(config.data)
    early = None if config.model.backbone == "cnn" else _backbone_inputs(config)
    scan = scan_source(source, progress=progress)
    if not shows_nothing:
        refuse_if_too_bad(scan, max_bad_fraction=config.data.max_bad_fraction)
        if len(split_list(config.data.classes)) < 2:  # a client may lack classes of an agreed list, even all but one
            refuse_single_class(scan)
    wanted = early or (_public_cnn_inputs(config) if shows_nothing else _cnn_inputs(config, scan))
    store = ContentStore(cache_folder("inputs", wanted.key), wanted.shape, np.dtype(wanted.dtype))
    _describe(store, config, wanted)
    inputs = store.rows_of(scan.digests)
    absent = np.flatnonzero(scan.usable & inputs.absent)
    if len(absent):
        _fill(config, source, scan, absent, store, wanted, progress)
        inputs = store.rows_of(scan.digests)
    return Prepared(
        inputs=inputs,
        labels=scan.labels,
        digests=scan.digests,
        file_digests=scan.file_digests,
        usable=scan.usable,
        num_train=scan.num_train,
        classes=scan.classes,
        unit_digests=scan.unit_digests,
        owners=scan.owners,
        client_names=scan.client_names,
        faults=scan.faults,
        seconds=time.perf_counter() - started,
        key=hashlib.sha256(f"{scan.fingerprint}\x1f{scan.classes}".encode()).hexdigest()[:24],
    )


def _backbone_inputs(config: RunConfig) -> _Inputs:
    from common.models.backbone_info import backbone_info

    facts = backbone_info(config)
    side = facts.image_size
    if not config.caches_features:
        named: list[object] = [FORMAT, "pixels", side, 3, facts.interpolation]
        return _Inputs(_key(named), (side, side, 3), "uint8", facts.interpolation, side)
    size = facts.num_flattened if config.model.head == "mlp" else facts.num_features
    named = [FORMAT, "features", facts.sha256, side, facts.mean, facts.std, facts.interpolation]
    named += [config.model.head, config.model.backbone, config.system.device]
    return _Inputs(_key(named), (size,), "float32", facts.interpolation, side)


def _cnn_inputs(config: RunConfig, scan: Scan) -> _Inputs:
    widths, heights = scan.widths[scan.usable], scan.heights[scan.usable]
    side = config.data.image_size
    if side is None:
        if len(np.unique(widths)) > 1 or len(np.unique(heights)) > 1:
            raise DataError("the images differ in size: set data.image-size to the side that all shall have")
        if widths[0] != heights[0] or widths[0] < 4:
            raise DataError(
                f"images of {widths[0]} x {heights[0]} pixels: set data.image-size to the side of the squares "
                "(at least 4) that they shall become"
            )
        side = int(widths[0])
    channels = int(scan.channels[scan.usable].max())
    named: list[object] = [FORMAT, "pixels", side, channels, "bicubic"]
    return _Inputs(_key(named), (side, side, channels), "uint8", "bicubic", side)


def _public_cnn_inputs(config: RunConfig) -> _Inputs:
    side = config.data.image_size
    if side is None:
        raise ConfigError(
            "a run over clients with images of their own needs data.image-size with model.backbone='cnn': nobody may "
            "learn it from them"
        )
    return _Inputs(_key([FORMAT, "pixels", side, 3, "bicubic"]), (side, side, 3), "uint8", "bicubic", side)


def _key(named: list[object]) -> str:
    return hashlib.sha256(repr(named).encode()).hexdigest()[:24]


def _describe(store: ContentStore, config: RunConfig, wanted: _Inputs) -> None:
    """Say beside the rows what they are, for `bract cache list`."""
    file = store.folder / "about.json"
    if not file.is_file():
        kind = f"features of {config.model.backbone}" if wanted.dtype == "float32" else "pixels"
        about: dict[str, Any] = {"kind": kind, "side": wanted.side, "shape": wanted.shape, "dtype": wanted.dtype}
        write_atomic(file, json.dumps(about), durable=False, mode=0o600)


def _fill(
    config: RunConfig,
    source: ImageSource,
    scan: Scan,
    rows: np.ndarray,
    store: ContentStore,
    wanted: _Inputs,
    progress: ProgressFactory,
) -> None:
    """Decode what is missing and bring it into the store."""
    from common.data.decoding import decode

    images = source_entries(source).images
    with _collector(config, store, wanted, len(rows), progress) as collector:
        for row in rows:
            collector.push(int(row), decode(images[int(row)]["image"]), scan.digests[row].tobytes())


def _collector(
    config: RunConfig, store: ContentStore, wanted: _Inputs, total: int, progress: ProgressFactory
) -> "FeatureExtractor | PixelCollector":
    from common.data.feature_extraction import FeatureExtractor, PixelCollector, choose_device

    if wanted.dtype == "uint8":
        report = progress(total, "Scaling images")
        return PixelCollector(
            store, side=wanted.side, channels=wanted.shape[2], interpolation=wanted.interpolation, progress=report
        )
    from common.models.classifier import feature_network

    return FeatureExtractor(
        feature_network(config),
        store,
        side=wanted.side,
        interpolation=wanted.interpolation,
        device=choose_device(config.system.device),
        progress=progress(total, f"Backbone pass ({config.model.backbone})"),
    )
