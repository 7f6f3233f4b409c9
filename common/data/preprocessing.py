"""Preparation of a source's images as the inputs that models are trained on.

Each image is decoded to learn what it is (`common.data.scan`), and passes the backbone once
(`common.data.feature_extraction`). A scaled copy waits in memory in between; without room for it, the image is decoded
again. Both results are cached by content, so a new seed, partition or run re-uses them, and a changed image invalidates
only itself. A client process whose images are cached needs NumPy and nothing heavier.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config.schema import RunConfig
from common.config.sections import DataConfig
from common.data.decoding import BadImage, decode_in_order, read_image
from common.data.feature_extraction import scaled
from common.data.inputs.feature_process import FeatureProcess
from common.data.inputs.input_format import (
    InputFormat,
    cnn_format,
    features_format,
    open_collector,
    open_store,
    pixels_format,
    public_cnn_format,
)
from common.data.inputs.scaled_copies import ScaledCopies
from common.data.scan import Keep, Scan, refuse_if_too_bad, refuse_single_class, scan_source
from common.data.sources.base_source import ImageSource
from common.data.sources.joined import open_joined, without_images
from common.data.sources.registry import open_source
from common.data.tones.rendering import Tones, render, tones_of
from common.data.tones.row_names import is_shown_otherwise, row_names
from common.data.tones.value_facts import ValueFacts
from common.errors import DataError
from common.models.names import BackboneSpec, usual_interpolation
from common.models.providers.registry import CONV_SIDE
from common.system.content_store import ContentStore, StoredRows
from common.system.progress import ProgressFactory, no_progress
from common.system.threads import in_order

if TYPE_CHECKING:
    from PIL.Image import Image

    from common.data.feature_extraction import FeatureExtractor, PixelCollector
    from common.models.classifier import Network

_logger = logging.getLogger("bract")
# What the inputs of files that were closed after their scan are stored under.
_CLOSED = np.frombuffer(hashlib.sha256(b"a file that was closed").digest(), np.uint8)
# Seconds between two looks at what another process has stored.
_GLANCE = 0.05


@dataclass(frozen=True)
class Scanned:
    """A source with the scan of its n entries, unusable ones included.

    The key names the source's content and its class list. Images that no file holds have no source.
    """

    scan: Scan
    key: str
    source: ImageSource | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(Scanned):
    """A scanned source together with the inputs that models are trained on.

    The inputs are (n, d) float32 features, or (n, side, side, channels) uint8 pixels, read when indexed. `seconds` is
    the time for which the preparation kept its caller waiting.
    """

    inputs: StoredRows
    seconds: float


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
    with Preparation(config, progress, shows_nothing=shows_nothing, shape=shape) as preparation:
        return preparation.finish()


@dataclass
class Preparation:
    """A preparation in two steps.

    Entering it scans the source, and `finish` returns the inputs; the arguments and errors are those of `prepare`. In
    between its caller can do what needs the scan alone.
    With `ahead` another process loads the backbone from the beginning and computes the features. It is not started
    where this process has torch already, or needs it later anyway. `warn` is called if that process ends early.
    """

    config: RunConfig
    progress: ProgressFactory = no_progress
    shows_nothing: bool = False
    shape: tuple[int, ...] | None = None
    ahead: bool = False
    warn: Callable[[str], object] = _logger.warning

    def __post_init__(self) -> None:
        self._process: FeatureProcess | None = None
        self._known: InputFormat | None = None
        self._copies = ScaledCopies(self._format_so_far)
        # Digests of the copies that the process can take, as they come. None once there are no more.
        self._arrived: SimpleQueue[bytes | None] = SimpleQueue()
        self._tones, self._is_scanned = tones_of(self.config.data), False
        # Inputs that were stored before the scan, and whether it has met an image that has none.
        self._stored: ContentStore | None = None
        self._has_news = False
        # Rows that were stored before the process began to store more.
        self._before: int | None = None
        self.ahead = self.ahead and self.config.needs_no_torch and not _has_torch()

    def __enter__(self) -> "Preparation":
        started = time.perf_counter()
        try:
            self._scan()
        except BaseException:
            self.__exit__()
            raise
        self._seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_: object) -> None:
        self._arrived.put(None)
        if self._process is not None:
            self._process.kill()
        self._copies.clear()

    def _scan(self) -> None:
        config, shows_nothing = self.config, self.shows_nothing
        source = (open_joined if shows_nothing else open_source)(config.data)
        # Before the scan, which may take minutes: wrong weights should stop a run at once.
        if config.model.backbone != "cnn":
            from common.models.backbone_info import has_facts

            if self.ahead and not has_facts(config.backbone_spec):
                self._copies.guess = _guessed_format(config.backbone_spec)
                self._start_process()
            else:
                self._known = self._format()
                self._stored = self._store()
        source, scan = _scanned(source, config.data, self._guarded, self._keep, shows_nothing=shows_nothing)
        if not shows_nothing:
            _log_remarks(source)
            refuse_if_too_bad(scan, max_bad_fraction=config.data.max_bad_fraction)
            refuse_single_class(scan)
        self._source = source
        self.scanned = Scanned(scan, content_key(scan), source)
        self._names, self._is_scanned = row_names(scan, self._tones), True
        self._arrived.put(None)
        # Features may be missing of images that an earlier scan has decoded.
        if self.ahead and self._process is None and len(self._missing(self._store().rows_of(self._names))):
            self._start_process()

    def finish(self) -> Prepared:
        """Return the inputs, once all are there.

        Raises:
            ConfigError: As in `prepare`.
            DataError: As in `prepare`.
            WeightsError: As in `prepare`.
        """
        started = time.perf_counter()
        if self._process is not None:
            self._await_process(self._process)
        store = self._store()
        inputs = store.rows_of(self._names)
        missing = self._missing(inputs)
        if len(missing):
            if self._process is not None and self._process.failed:
                self.warn(
                    "The process of the backbone pass has ended early, and this one does the rest. A system that is "
                    "short of memory ends processes: look at how much memory is free."
                )
            progress = self.progress(len(missing), self._label)
            with open_collector(store, self._format(), self._network, self.config.system.device, progress) as collector:
                self._fill(collector, missing)
            inputs = store.rows_of(self._names)
        seconds = self._seconds + time.perf_counter() - started
        return Prepared(**vars(self.scanned), inputs=inputs, seconds=seconds)

    def _network(self) -> "Network":
        from common.models.classifier import feature_network

        return feature_network(self.config.model, self.config.backbone_spec)

    @property
    def _label(self) -> str:
        scaled_only = self.config.model.backbone == "cnn" or not self.config.caches_features
        return "Scaling images" if scaled_only else f"Backbone pass ({self.config.model.backbone})"

    def _format(self) -> InputFormat:
        """Return the format of the inputs.

        It depends on the scan for the small network alone.
        """
        config, side = self.config, self.config.data.image_size
        if config.model.backbone == "cnn":
            return public_cnn_format(side) if self.shows_nothing else cnn_format(side, self.scanned.scan, self.shape)
        from common.models.backbone_info import backbone_info

        info = backbone_info(config.backbone_spec)
        if config.caches_features:
            return features_format(info, config.model, config.system.device)
        return pixels_format(info.image_size, 3, info.interpolation)

    def _format_so_far(self) -> InputFormat | None:
        if self._known is None and self._process is not None and self._process.ready:
            self._known = self._format()
        return self._known

    def _store(self) -> ContentStore:
        return open_store(self._format(), self.config.model.backbone)

    def _missing(self, inputs: StoredRows) -> np.ndarray:
        return np.flatnonzero(self.scanned.scan.usable & inputs.absent)

    def _fill(self, collector: "FeatureExtractor | PixelCollector | FeatureProcess", missing: np.ndarray) -> None:
        """Push the images of rows that have no inputs.

        Those come first whose copies the scan has left.
        """
        wanted = self._format()
        # Copies have the tones of the canonical decode. An image that is shown in others has another name.
        copied = np.array([self._copies.serves(self._names[row].tobytes(), wanted) for row in missing], dtype=bool)
        names = ((row, self._names[row].tobytes()) for row in missing[copied])
        for row, copy in in_order(partial(self._copies.scaled, wanted=wanted), names):
            collector.push_pixels(copy, self._names[row].tobytes())
        shown = partial(_shown, tones=self._tones, wanted=wanted, or_black=self.shows_nothing)
        for row, pixels in decode_in_order(shown, self._source.entries.cells(missing[~copied])):
            if pixels is None:
                # Black pixels under the image's own name would stay in the cache when the file is open again.
                self._names[row] = _CLOSED
            black = np.zeros((wanted.side, wanted.side, wanted.channels), np.uint8)
            collector.push_pixels(black if pixels is None else pixels, self._names[row].tobytes())

    def _start_process(self) -> None:
        config = self.config
        try:
            self._process = FeatureProcess(config.model, config.backbone_spec, config.system.device)
        except OSError:
            # Where no process can be started, this one does the work.
            self.ahead = False
        else:
            self._process.start(self._feed)

    def _keep(self, image: "Image", digest: bytes, facts: ValueFacts) -> None:
        """Keep a copy of an image that the scan has decoded."""
        # Under other tones the model sees other pixels.
        if is_shown_otherwise(facts, len(image.getbands()), self._tones):
            return
        if self._stored is not None:
            if digest in self._stored:
                return
            self._has_news = True
        if self._copies.offer(image, digest) and self.ahead:
            self._arrived.put(digest)

    def _feed(self, process: FeatureProcess) -> None:
        """Send all images without features.

        It sends the first ones while others are still scanned.
        """
        store, wanted, sent = self._store(), self._format(), set[bytes]()
        self._before = len(store)
        for digest, copy in in_order(partial(self._copies.scaled, wanted=wanted), self._arrivals(store, wanted)):
            process.push_pixels(copy, digest)
            self._copies.forget(digest)
            sent.add(digest)
        # The scan may have failed.
        if self._is_scanned:
            missing = self._missing(store.rows_of(self._names))
            self._fill(process, np.array([row for row in missing if self._names[row].tobytes() not in sent], np.int64))

    def _arrivals(self, store: ContentStore, wanted: InputFormat) -> Iterator[tuple[bytes, bytes]]:
        """Yield the digests of copies from the scan, each as key and item."""
        for digest in iter(self._arrived.get, None):
            if digest not in store and self._copies.serves(digest, wanted):
                yield digest, digest
            else:
                self._copies.forget(digest)

    def _await_process(self, process: FeatureProcess) -> None:
        """Wait for the process and show how far it is."""
        done, wanted, advance, ended = 0, 0, None, False
        while not ended:
            ended = process.wait(_GLANCE)
            if advance is None and self._before is not None:
                store = self._store()
                # With what it has stored before anybody waited.
                wanted = len(self._missing(store.rows_of(self._names))) + len(store) - self._before
                advance = self.progress(wanted, self._label) if wanted else no_progress(0, "")
            if advance is not None and self._before is not None:
                store.refresh()
                # The last step prints, so it waits for the end. Equal images have one row.
                last = ended and not process.failed
                stored = wanted if last else min(wanted - 1, len(store) - self._before)
                if stored > done:
                    advance(stored - done)
                    done = stored

    def _guarded(self, total: int, label: str) -> Callable[[int], None]:
        """Show progress.

        Each step notices whether a process is needed or has ended.
        """
        advance = self.progress(total, label)

        def step(amount: int) -> None:
            advance(amount)
            if self.ahead and self._has_news and self._process is None:
                self._start_process()
            if self._process is not None and self._process.failed and self._known is None:
                # This raises the error that the process had, if it was one.
                self._known = self._format()

        return step


def _has_torch() -> bool:
    return "torch" in sys.modules


def content_key(scan: Scan) -> str:
    """Return the key of a source's content and class list."""
    return hashlib.sha256(f"{scan.fingerprint}\x1f{scan.classes}".encode()).hexdigest()[:24]


def _scanned(
    source: ImageSource, data: DataConfig, progress: ProgressFactory, keep: Keep, *, shows_nothing: bool
) -> tuple[ImageSource, Scan]:
    """Scan a source, without any image where a fault must not show."""
    try:
        return source, scan_source(source, progress=progress, keep=keep)
    except DataError as error:
        if not shows_nothing:
            raise
        source = without_images(data, error)
        return source, scan_source(source, progress=progress, keep=keep)


def _shown(cell: Mapping[str, Any], *, tones: Tones, wanted: InputFormat, or_black: bool) -> np.ndarray | None:
    """Return a scaled image as models see it.

    None stands for one that shall be black.
    """
    try:
        image = render(read_image(cell), tones)
    except BadImage:
        if not or_black:
            raise
        # The file was closed after its scan. Another answer would tell a server so, for some settings only.
        return None
    return scaled(image, wanted.side, wanted.channels, wanted.interpolation)


def _log_remarks(source: ImageSource) -> None:
    # Remarks on classes load heavy libraries, which a cached run that shows no warnings does without.
    if _logger.isEnabledFor(logging.WARNING):
        for remark in source.remarks():
            _logger.warning(remark)


def _guessed_format(spec: BackboneSpec) -> InputFormat | None:
    """Return the format of scaled images that a backbone probably takes."""
    interpolation = usual_interpolation(spec.name)
    return None if interpolation is None else pixels_format(spec.image_size or CONV_SIDE, 3, interpolation)
