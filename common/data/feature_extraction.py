"""Conversion of decoded images to stored features or stored pixels.

Each image passes the frozen backbone once, and its features are stored for all later runs. Features are extracted in
chunks of exactly 32 images, the last one padded, so that an image's features do not depend on which images came with it
or on how many threads ran: a test holds this to the bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.errors import DataError
from common.models.engines.feature_engine import CHUNK
from common.system.content_store import ContentStore
from common.system.threads import num_cores

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from common.models.classifier import AnyNetwork

Progress = Callable[[int], None]


class RowSink(Protocol):
    """Taker of an extractor's rows, each under the key of its image."""

    def __contains__(self, key: bytes, /) -> bool:
        """Return whether the row of a key is there already."""

    def append(self, keys: Sequence[bytes], rows: np.ndarray, /) -> None:
        """Add rows (k, ...), one for each key."""


def choose_device(wanted: str) -> str:
    """Return the torch device that a setting asks for.

    From then on a GPU of NVIDIA computes in full float32 and rounds equal inputs alike.

    Raises:
        DataError: The setting names a device that this machine does not have.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[wanted]:
        raise DataError(
            f"system.device={wanted!r} is not present on this machine; 'auto' takes the best device that is"
        )
    if wanted == "cuda":
        _use_exact_kernels()
    return wanted


def _use_exact_kernels() -> None:
    """Make cuDNN and cuBLAS keep float32 and choose kernels by shape alone."""
    import torch

    # By default convolutions keep ten bits of each factor, and some kernels add in an order that changes from call to
    # call. An image's gradient would then differ by its neighbours, which the clip bound does not cover.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    # Timing the kernels would choose another one by how busy the device is.
    torch.backends.cudnn.benchmark = False


def square(image: "Image", side: int, interpolation: str = "bicubic") -> "Image":
    """Scale the shorter side to `side` pixels and cut the middle square."""
    from PIL import Image, ImageOps

    if image.size == (side, side):
        return image
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return ImageOps.fit(image, (side, side), method=method)


def scaled(image: "Image", side: int, channels: int, interpolation: str) -> np.ndarray:
    """Return an image as models take it, (side, side, channels) uint8."""
    pixels = np.asarray(square(image, side, interpolation).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(side, side, channels)


class FeatureExtractor:
    """Context manager that stores the features of images, chunk by chunk.

    Leaving it waits for the last chunks. A process that is killed loses the chunks that its threads are computing; all
    others are in the store. The backbone computes in `dtype`, bfloat16 or float32. `progress` gets the number of images
    after each chunk. With a `head` its outputs are stored instead, in float32.
    """

    def __init__(
        self,
        network: "AnyNetwork",
        store: RowSink,
        *,
        side: int,
        interpolation: str,
        device: str,
        progress: Progress,
        dtype: str = "float32",
        channels: int = 3,
        head: "nn.Module | None" = None,
    ) -> None:
        import torch

        self._network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._store, self._side, self._interpolation = store, side, interpolation
        self._device, self._progress = device, progress
        self._channels = channels
        self._head, self._low = head, dtype == "bfloat16"
        # Many chunks on one thread each are faster than one chunk on many threads, above all on a busy machine.
        self._workers = num_cores() if device == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._workers)
        self._pending: dict[Future[np.ndarray], list[bytes]] = {}
        self._images: list[np.ndarray] = []
        self._digests: list[bytes] = []
        self._seen: set[bytes] = set()
        self._threads = torch.get_num_threads()

    def __enter__(self) -> "FeatureExtractor":
        import torch

        if self._device == "cpu":
            torch.set_num_threads(1)
        return self

    def push(self, image: "Image", digest: bytes) -> None:
        """Add one decoded image, as `push_pixels` does."""
        self.push_pixels(scaled(image, self._side, self._channels, self._interpolation), digest)

    def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
        """Add one image that is scaled already, unless an equal one was added before."""
        if digest in self._store or digest in self._seen:
            self._progress(1)
            return
        self._seen.add(digest)
        self._images.append(pixels)
        self._digests.append(digest)
        if len(self._images) == CHUNK:
            self._submit()

    def _submit(self) -> None:
        chunk = np.zeros((CHUNK, self._side, self._side, self._channels), dtype=np.uint8)
        chunk[: len(self._images)] = self._images
        self._pending[self._pool.submit(self._forward, chunk)] = self._digests
        self._images, self._digests = [], []
        self._collect(2 * self._workers)

    def _collect(self, allowed: int) -> None:
        """Store finished chunks until at most `allowed` are running."""
        while self._pending:
            # Without this limit, decoding would fill the memory with chunks that wait for the backbone.
            timeout = None if len(self._pending) > allowed else 0
            done, _ = wait(self._pending, timeout=timeout, return_when=FIRST_COMPLETED)
            if not done:
                return
            for future in done:
                digests = self._pending.pop(future)
                self._store.append(digests, future.result()[: len(digests)])
                self._progress(len(digests))

    def _forward(self, chunk: np.ndarray) -> np.ndarray:
        import torch

        inputs = self._network.prepare(chunk).to(self._device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._low):
                features = self._network.features(inputs)
            rows = features.float() if self._head is None else self._head(features.float())
        return np.asarray(rows.cpu().numpy())

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        import torch

        try:
            if kind is None:
                if self._images:
                    self._submit()
                self._collect(0)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._threads)


class PixelCollector:
    """Context manager that stores the scaled pixels of images."""

    def __init__(self, store: ContentStore, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self._waiting: dict[bytes, np.ndarray] = {}

    def __enter__(self) -> "PixelCollector":
        return self

    def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
        """Add one image that is scaled already."""
        self._progress(1)
        if digest in self._store or digest in self._waiting:
            return
        self._waiting[digest] = pixels
        if len(self._waiting) == 8 * CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._store.append(list(self._waiting), np.stack(list(self._waiting.values())))
            self._waiting = {}

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._flush()
