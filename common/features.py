"""One pass of each image through a frozen backbone, and the images' content hashes.

Features are extracted in chunks of exactly 32 images, the last one padded, so
that an image's features do not depend on which images came with it or on how
many threads ran: a test holds this to the bit.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from common.errors import DataError
from common.models.backbones import BackboneInfo

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from torch import nn

CHUNK = 32
Progress = Callable[[int], None]


def choose_device(wanted: str) -> str:
    """The torch device for `system.device`; `auto` takes the best one present.

    Raises:
        DataError: The device was asked for by name and is not there.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[wanted]:
        raise DataError(f"system.device={wanted!r} is not present here; 'auto' takes the best there is")
    return wanted


def fast_dtype(device: str) -> str:
    """`bfloat16` where the device computes it natively, else `float32`."""
    import torch

    if device == "cpu":
        flags = torch.backends.cpu.get_cpu_capability()
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bfloat16" if native and "AVX512" in flags else "float32"
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "float32"


def normalise(features: np.ndarray) -> np.ndarray:
    """Signed square root, centre each row, scale each row to unit length.

    A function of one image alone, so it needs no statistics of private data; the
    unit length bounds every example's gradient, which makes clipping mild.

    Args:
        features: (n, d) float, as the backbone gives them.

    Returns:
        (n, d) float32; a row without any variation becomes zero.

    Source: Perronnin et al. 2010, Improving the Fisher Kernel (power and L2
    normalisation).

    >>> normalise(np.array([[4.0, 0.0]])).round(3).tolist()
    [[0.7070000171661377, -0.7070000171661377]]
    """
    features = features.astype(np.float32)
    rooted = np.sign(features) * np.sqrt(np.abs(features))
    centred = rooted - rooted.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    rounding = 1e-6 * np.linalg.norm(rooted, axis=1, keepdims=True)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > rounding))


def decoded(images: "Dataset") -> Iterator[tuple["Image", bytes]]:
    """Each image decoded, with the SHA-256 of its pixels at full size.

    Yields:
        The image (RGB, or L if it has one channel), and 32 bytes over mode,
        size and pixels.

    Raises:
        DataError: A file cannot be decoded; the message names its position.
    """
    from PIL import ImageOps

    for row in range(len(images)):
        try:
            image = ImageOps.exif_transpose(images[row]["image"])
            image = _eight_bits(image)
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            raise DataError(f"{_place(images, row)} cannot be read as an image ({reason}): mend or remove it") from None
        content = f"{image.mode}{image.size}".encode() + image.tobytes()
        yield image, hashlib.sha256(content).digest()


def _place(images: "Dataset", row: int) -> str:
    """The file of an image, or its position where there is none."""
    from datasets import Image

    path = images.cast_column("image", Image(decode=False))[row]["image"]["path"]
    return str(path) if path else f"image number {row} of the source"


def _eight_bits(image: "Image") -> "Image":
    """RGB or L. Pillow alone would clip deeper pixels to 255: a 16-bit scan became all white."""
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; 8 and 16 bits are read")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "L" else image.convert("RGB")


def square(image: "Image", side: int) -> "Image":
    """Scale the shorter side to `side` pixels (bicubic) and cut the middle square."""
    from PIL import Image, ImageOps

    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)


def extract_features(
    images: "Dataset",
    backbone: "nn.Module",
    info: BackboneInfo,
    *,
    side: int,
    device: str,
    features: np.ndarray,
    digests: np.ndarray,
    progress: Progress,
) -> None:
    """Pass every image once through a frozen backbone.

    Args:
        images: n rows with an `image` column.
        backbone: Module with timm's `forward_features`, in eval mode.
        info: Its preprocessing.
        side: Side of the square images, in pixels.
        device: Torch device; bf16 and channels_last are used where native.
        features: (n, d) float32, filled with features after `normalise`; may be a file.
        digests: (n, 32) uint8, filled with the SHA-256 of each image's pixels.
        progress: Called with the number of images of each finished chunk.

    Raises:
        DataError: An image cannot be decoded.
    """
    import torch

    backbone = backbone.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Chunks side by side on one thread each beat many threads on one chunk, most of all on a busy machine.
    workers = (os.cpu_count() or 1) if device == "cpu" else 1
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    pending: deque[tuple[int, int, Future[np.ndarray]]] = deque()

    def finish() -> None:
        start, size, future = pending.popleft()
        features[start : start + size] = normalise(future.result()[:size])
        progress(size)

    pool = ThreadPoolExecutor(workers)
    try:
        for start, size, chunk in _chunks(images, side, digests):
            pending.append((start, size, pool.submit(_forward, backbone, chunk, info, device)))
            if len(pending) > 2 * workers:
                finish()
        while pending:
            finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _chunks(images: "Dataset", side: int, digests: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Start, size and pixels (32, side, side, 3) of each chunk; fills `digests` on the way."""
    source = decoded(images)
    for start in range(0, len(images), CHUNK):
        size = min(CHUNK, len(images) - start)
        chunk = np.zeros((CHUNK, side, side, 3), dtype=np.uint8)
        for row in range(size):
            image, digest = next(source)
            chunk[row] = np.asarray(square(image, side).convert("RGB"))
            digests[start + row] = np.frombuffer(digest, dtype=np.uint8)
        yield start, size, chunk


def _forward(backbone: "nn.Module", chunk: np.ndarray, info: BackboneInfo, device: str) -> np.ndarray:
    import torch

    pixels = torch.from_numpy(chunk).to(device).permute(0, 3, 1, 2).float()
    pixels = ((pixels - info.mean) / info.std).contiguous(memory_format=torch.channels_last)
    low = fast_dtype(device) == "bfloat16"
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=low):
        maps = backbone.forward_features(pixels)  # type: ignore[operator]
    return np.asarray(maps.float().mean(dim=(2, 3)).cpu().numpy())


def collect_pixels(images: "Dataset", *, side: int | None, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """All images as one array of pixels, for a network that is trained from scratch.

    Args:
        images: n rows with an `image` column.
        side: Side in pixels; `None` keeps the size if all images share one.
        progress: Called after each image with 1.

    Returns:
        (n, side, side, channels) uint8 with 1 or 3 channels, and (n, 32) uint8 digests.

    Raises:
        DataError: An image cannot be decoded, or sizes differ or are not square and no side is given.
    """
    rows: list[np.ndarray] = []
    digests = np.zeros((len(images), 32), dtype=np.uint8)
    for row, (image, digest) in enumerate(decoded(images)):
        rows.append(np.asarray(image if side is None else square(image, side)))
        if rows[-1].shape[:2] != rows[0].shape[:2]:
            raise DataError("the images differ in size: set data.image-size to the side that all shall have")
        digests[row] = np.frombuffer(digest, dtype=np.uint8)
        progress(1)
    if any(pixels.ndim != rows[0].ndim for pixels in rows):
        rows = [pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2) for pixels in rows]
    stacked = np.stack(rows)
    if stacked.shape[1] != stacked.shape[2] or stacked.shape[1] < 4:
        raise DataError(
            f"images of {stacked.shape[2]} x {stacked.shape[1]} pixels: set data.image-size to the side of the squares "
            "(at least 4) that they shall become"
        )
    return (stacked if stacked.ndim == 4 else stacked[..., None]), digests
