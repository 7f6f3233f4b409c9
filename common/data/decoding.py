"""One image file to pixels: which formats are read, what is refused, and the digest of what is shown."""

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

from common.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 100_000_000  # read from the header, before anything is decoded
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WEBP"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"GIF8", "GIF"),
)


class BadImage(DataError):  # noqa: N818 -- it is the image that is bad
    """One file that cannot be used as an image; the message is the reason alone, without the file."""


def decode(cell: Mapping[str, Any]) -> "Image":
    """The pixels of one image, as a person would see them.

    Guarantee: mode RGB, or L if the file has one channel; 8 bits a channel; both
    sides at least 2 pixels; at most `MAX_PIXELS` pixels; rotated as EXIF says;
    the first frame of an animation. Deeper pixels keep their upper 8 bits of 16.
    Transparency is dropped, not blended: the stored colour counts, as in
    torchvision's image folders. Palettes become RGB. `format` of the result is one
    of `FORMATS`.

    Args:
        cell: `bytes` (the file's content, or None) and `path` (used if there are no bytes).

    Raises:
        BadImage: The file is missing, empty, cut short, damaged, no image of the
            known formats, a decompression bomb, or 1 pixel wide or high.
    """
    with _open(cell) as stream, _quiet():
        head = stream.read(16)
        if not head:
            raise BadImage("empty file")
        stream.seek(0)
        try:
            return _decode(stream)
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(_reason(error, head)) from None


def pixel_digest(image: "Image") -> bytes:
    """SHA-256 over size and RGB pixels: 32 bytes that name what is shown, whatever the file.

    A gray image and the same image in colour are one: which is it, the file decides.

    Args:
        image: As `decode` gives it.
    """
    shown = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(f"RGB{shown.size}".encode())
    digest.update(shown.tobytes())
    return digest.digest()


def file_digest(cell: Mapping[str, Any]) -> bytes:
    """SHA-256 over the bytes of one file, whatever a decoder makes of them.

    Args:
        cell: As for `decode`.

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
    if not os.path.isfile(path):  # also keeps pipes and devices from being opened
        raise BadImage("not a regular file" if os.path.exists(path) else "no such file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadImage(f"cannot be opened ({error.strerror})") from None


def _decode(stream: IO[bytes]) -> "Image":
    from PIL import Image

    image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(_too_large(f"{width} x {height}"))
    if min(width, height) < 2:
        raise BadImage(f"{width} x {height} pixels: both sides must be at least 2")
    kind = "JPEG" if image.format == "MPO" else image.format
    image.load()
    shown = _eight_bits(_upright(image))
    shown.format = kind
    return shown


def _upright(image: "Image") -> "Image":
    """A copy, rotated as EXIF says; damaged EXIF says nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image.copy()


def _eight_bits(image: "Image") -> "Image":
    """RGB or L. Pillow alone would clip deeper pixels to 255: a 16-bit scan became all white."""
    from PIL import Image

    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise BadImage(f"pixels of mode {mode}: 8 and 16 bits a channel are read")
    try:
        if mode in ("1", "LA", "La"):
            return (image.convert("LA") if mode == "La" else image).convert("L")
        return image.convert("RGB")
    except ValueError:
        raise BadImage(f"pixels of mode {mode} have no known way to RGB") from None


def _too_large(size: str) -> str:
    return f"decompression bomb: {size} pixels, more than {MAX_PIXELS // 1_000_000} million"


def _reason(error: Exception, head: bytes) -> str:
    """Why a file could not be read, in words that are the same for every Pillow."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return _too_large("far too many")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    kind = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if kind is None:
        return f"not an image of a known format ({', '.join(FORMATS)})"
    return f"damaged or truncated {kind} ({type(error).__name__})"


_calls = 0
_lock = threading.Lock()
_kept = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings while any thread decodes; what matters becomes a `BadImage`."""
    global _calls  # noqa: PLW0603 -- warning filters belong to the process, so does this count
    with _lock:
        _calls += 1
        if _calls == 1:
            _kept.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _kept.close()
