"""Decoding of one image file to pixels, with digests of both."""

import contextlib
import hashlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from common.data.image_formats import FORMATS, HEAD_BYTES, foreign_of, format_of
from common.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


# Refused in every format: larger or narrower images, and pixels of 32 bits.
MAX_PIXELS = 100_000_000
_MIN_SIDE = 2
_DEEP_MODES = ("I", "F")


class BadImage(DataError):  # noqa: N818 -- the image is bad, not the program
    """The reason why a file cannot be used, without the file's name."""


def decode(cell: Mapping[str, Any]) -> "Image":
    """Return the pixels of one image as a person would see them.

    Guarantee: mode RGB, or L if the file has one channel; 8 bits per channel; both sides at least 2 pixels; at most
    `MAX_PIXELS` pixels; rotated as EXIF says; the first frame of an animation. Of 16-bit pixels the upper 8 bits are
    kept. Transparency is dropped, not blended: the stored colour counts, as in torchvision's image folders. Palettes
    become RGB. `format` of the result is one of `FORMATS`. Without `bytes`, the cell's `path` is read.

    Raises:
        BadImage: The file is missing, empty, truncated, damaged, not an image of a known format, a decompression bomb,
            1 pixel wide or high, or has pixels of 32 bits.
    """
    with _open(cell) as stream, _quiet():
        head = stream.read(HEAD_BYTES)
        if not head:
            raise BadImage("empty file")
        stream.seek(0)
        try:
            return _decode(stream)
        except BadImage:
            raise
        # A hostile file can make Pillow raise anything; one bad file must never stop a scan.
        except Exception as error:
            raise BadImage(_reason(error, head)) from None


def pixel_digest(image: "Image") -> bytes:
    """Return the SHA-256 of an image's size and RGB pixels, 32 bytes.

    A gray image and the same image in colour have one digest: only the file's format tells them apart.
    """
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(f"RGB{rgb.size}".encode())
    digest.update(rgb.tobytes())
    return digest.digest()


def file_digest(cell: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of one file's bytes.

    Raises:
        BadImage: The file cannot be opened.
    """
    with _open(cell) as stream:
        return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]


def _open(cell: Mapping[str, Any]) -> IO[bytes]:
    if cell["bytes"] is not None:
        return io.BytesIO(cell["bytes"])
    path = cell["path"]
    if not path:
        raise BadImage("neither a file nor bytes")
    # Opening a pipe or a device could block for ever.
    if not os.path.isfile(path):
        raise BadImage("not a regular file" if os.path.exists(path) else "no such file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadImage(f"cannot be opened ({error.strerror})") from None


def _decode(stream: IO[bytes]) -> "Image":
    from PIL import Image

    image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    # The header alone has been read: a decompression bomb must be refused before its pixels are decoded.
    if width * height > MAX_PIXELS:
        raise BadImage(_too_large(f"{width} x {height}"))
    if min(width, height) < _MIN_SIDE:
        raise BadImage(f"{width} x {height} pixels: both sides must be at least {_MIN_SIDE}")
    name = "JPEG" if image.format == "MPO" else image.format
    image.load()
    upright = _upright(image)
    # Pillow keeps a deep PGM in 32 bits, with values up to 65,535.
    decoded = _eight_bits(upright.convert("I;16") if name == "PPM" and upright.mode == "I" else upright)
    decoded.format = name
    return decoded


def _upright(image: "Image") -> "Image":
    """Return a copy of an image, rotated as valid EXIF data says."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image.copy()


def _eight_bits(image: "Image") -> "Image":
    """Convert an image to RGB or L with 8 bits per channel."""
    from PIL import Image

    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    # Pillow would clip deeper pixels to 255, which turns a 16-bit scan all white.
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in _DEEP_MODES:
        raise BadImage(f"pixels of mode {mode}: only 8 or 16 bits per channel can be read")
    try:
        if mode in ("1", "LA", "La"):
            return (image.convert("LA") if mode == "La" else image).convert("L")
        return image.convert("RGB")
    except ValueError:
        raise BadImage(f"pixels of mode {mode} cannot be converted to RGB") from None


def _too_large(size: str) -> str:
    return f"decompression bomb: {size} pixels, more than {MAX_PIXELS // 1_000_000} million"


def _reason(error: Exception, head: bytes) -> str:
    """Return a reason in words that do not depend on Pillow's version."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return _too_large("far too many")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    if foreign := foreign_of("", head):
        return f"{foreign.name}: {foreign.remedy}"
    known = format_of(head)
    if known is None:
        return f"not an image of a known format ({', '.join(FORMATS)})"
    return f"damaged or truncated {known.name} ({type(error).__name__})"


_calls = 0
_lock = threading.Lock()
_filters = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Pillow's warnings while any thread decodes."""
    # Warning filters belong to the process: the first thread sets them, the last one restores them.
    global _calls  # noqa: PLW0603
    with _lock:
        _calls += 1
        if _calls == 1:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _filters.close()
