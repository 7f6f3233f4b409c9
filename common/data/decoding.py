"""Decoding of one image file to pixels, with digests of both.

`decode` is canonical: no setting changes it, because fingerprints and the train/evaluation split follow from it. What a
model sees of an image follows from `read_image` by `common.data.tones.rendering`.
"""

import contextlib
import hashlib
import io
import logging
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.data.image_formats import FORMATS, HEAD_BYTES, foreign_of, format_of
from common.data.tones.tiff_layout import layout_reason
from common.errors import DataError
from common.system.threads import SharedContext, in_order

if TYPE_CHECKING:
    from PIL.Image import Image


_Key = TypeVar("_Key")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Blocks of 16 MB that Pillow keeps while many images are decoded.
_KEPT_BLOCKS = 8
# Refused in every format: larger or narrower images, and pixels of 32 bits.
MAX_PIXELS = 100_000_000
_MIN_SIDE = 2
_DEEP_MODES = ("I", "F")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PLANAR, _CHANNELS_APART = 284, 2
_ORIENTATION = 274
# TIFF files that Pillow has all it needs for, but no row in its table.
_MORE_TIFF = {
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (b"MM", 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
}
# Raw mode of 16-bit colour, which Pillow reads as its upper bytes -> the mode that reads the lower bytes.
_OTHER_END = "16B" if sys.byteorder == "little" else "16L"
_LOWER = {"16B": "16L", "16L": "16B", "16N": _OTHER_END}


class BadImage(DataError):  # noqa: N818 -- the image is bad, not the program
    """The reason why a file cannot be used, without the file's name."""


@dataclass(frozen=True)
class StoredImage:
    """An image as its file stores it, turned as EXIF says.

    Attributes:
        canonical: What `decode` returns.
        pixels: The pixels in one of Pillow's modes. Of 16-bit colour they are the upper bytes.
        bits: Bits of a channel by the file's header; 8 if there are fewer.
        values: (h, w) or (h, w, 3) uint16, int16 if the file has signed values, where `bits` is more than 8; else None.
        opacity: (h, w) uint16 beside `values`; None where the file has none.
        white_is_zero: True if the file stores white as 0. Pillow turns such pixels at 8 bits, and not at 16.
    """

    canonical: "Image"
    pixels: "Image"
    bits: int
    values: np.ndarray | None
    opacity: np.ndarray | None
    white_is_zero: bool

    @property
    def signed(self) -> bool:
        """True if a value may be below 0."""
        return self.values is not None and self.values.dtype == np.int16


def decode(cell: Mapping[str, Any]) -> "Image":
    """Return the canonical pixels of one image.

    Guarantee: mode RGB, or L if the file has one channel; 8 bits per channel; both sides at least 2 pixels; at most
    `MAX_PIXELS` pixels; rotated as EXIF says; the first frame of an animation. Of 16-bit pixels the upper 8 bits are
    kept, even if white is stored as 0. Transparency is dropped, not blended: the stored colour counts, as in
    torchvision's image folders. Palettes become RGB. `format` of the result is one of `FORMATS`. Without `bytes`, the
    cell's `path` is read.

    Raises:
        BadImage: The file is missing, empty, truncated, damaged, not an image of a known format, a decompression bomb,
            1 pixel wide or high, or has pixels of 32 bits.
    """
    return read_image(cell).canonical


def read_image(cell: Mapping[str, Any]) -> StoredImage:
    """Read one image with all bits and the transparency that its file stores.

    Without `bytes`, the cell's `path` is read.

    Raises:
        BadImage: As in `decode`.
    """
    with _open(cell) as stream, _quiet:
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
            raise BadImage(_reason(error, head, stream)) from None


def decode_in_order(
    function: Callable[[_Item], _Result], items: Iterable[tuple[_Key, _Item]]
) -> Iterator[tuple[_Key, _Result]]:
    """Call `in_order` with a function that decodes images.

    Pillow uses the memory of one image again for the next. By default it asks the system for each one, which clears the
    memory page by page. That took a third of the time of photos.
    """
    with _kept_blocks:
        yield from in_order(function, items)


def count_pages(cell: Mapping[str, Any]) -> int:
    """Return the number of pages or frames of a readable image."""
    from PIL import Image

    with _open(cell) as stream, _quiet:
        try:
            with Image.open(stream) as image:
                return int(getattr(image, "n_frames", 1))
        # The first page is good. A damaged one behind it is not read anyway.
        except Exception:
            return 1


def pixel_digest(image: "Image | np.ndarray") -> bytes:
    """Return the SHA-256 of an image's size and RGB pixels, 32 bytes.

    It takes canonical pixels, also as an array (h, w) or (h, w, 3) uint8. A gray image and the same image in colour
    have one digest: only the file's format tells them apart.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"RGB{(width, height)}".encode())
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    digest.update(np.ascontiguousarray(colour).data)
    return digest.digest()


def deep_digest(stored: StoredImage) -> bytes | None:
    """Return the SHA-256 of all stored bits where the canonical pixels tell nothing.

    16-bit files of values below 256 are all black in their upper 8 bits, so they would all be one image. None where
    the canonical pixels have more than one colour, or the file itself has one value everywhere.
    """
    values = stored.values
    if values is None or _varies(np.asarray(stored.canonical)) or not _varies(values):
        return None
    digest = hashlib.sha256(f"{values.dtype.name}{values.shape}".encode())
    digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.digest()


def _varies(values: np.ndarray) -> bool:
    return bool((values != values[:1, :1]).any())


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
        raise BadImage(_absence(path))
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadImage(f"cannot be opened ({error.strerror})") from None


def _decode(stream: IO[bytes]) -> StoredImage:
    from PIL import Image, TiffImagePlugin

    for layout, modes in _MORE_TIFF.items():
        TiffImagePlugin.OPEN_INFO.setdefault(layout, modes)
    image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    # The header alone has been read: a decompression bomb must be refused before its pixels are decoded.
    if width * height > MAX_PIXELS:
        raise BadImage(_too_large(f"{width} x {height}"))
    if min(width, height) < _MIN_SIDE:
        raise BadImage(f"{width} x {height} pixels: both sides must be at least {_MIN_SIDE}")
    name = "JPEG" if image.format == "MPO" else image.format
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    raw_mode, apart = _raw_mode(image), tags.get(_PLANAR) == _CHANNELS_APART
    # Pillow would read half of each row twice, and call it an image.
    if apart and raw_mode == "R" and max(tags[_BITS_PER_SAMPLE]) > 8:
        raise BadImage("16-bit colour whose channels are stored apart: save it with the channels of a pixel together")
    image.load()
    pixels = _upright(image)
    # Pillow keeps a deep PGM in 32 bits, with values up to 65,535.
    pixels = pixels.convert("I;16") if name == "PPM" and pixels.mode == "I" else pixels
    mode = pixels.mode
    values: np.ndarray | None
    opacity: np.ndarray | None = None
    if mode == "I" and raw_mode.startswith("I;16") and raw_mode.endswith("S"):
        values = np.asarray(pixels).astype(np.int16)
    elif mode.startswith("I;16"):
        values = np.asarray(pixels).astype(np.uint16, copy=False)
    elif mode in _DEEP_MODES:
        deep = "32 bits per channel, which are not read: save it with 8 or 16 bits"
        raise BadImage((name == "TIFF" and layout_reason(stream)) or deep)
    else:
        # Of channels apart, only the upper bytes can be had.
        values, opacity = (None, None) if apart else _deep_colour(stream, pixels, raw_mode)
    bits = 8 if values is None else int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    canonical = _eight_bits(pixels, values)
    canonical.format = name
    return StoredImage(canonical, pixels, bits, values, opacity, white_is_zero)


def _raw_mode(image: "Image") -> str:
    """Return Pillow's name for the layout of a file's pixels."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _deep_colour(
    stream: IO[bytes], pixels: "Image", raw_mode: str
) -> tuple[np.ndarray, np.ndarray | None] | tuple[None, None]:
    """Return values and opacity of 16-bit colour, None for other images."""
    kind, _, order = raw_mode.partition(";")
    if kind == "LA" and order == "16B":
        # Both bytes of gray and of opacity, taken as four channels of 8 bits.
        pairs = np.asarray(_read_as(stream, "RGBA")).astype(np.uint16)
        return pairs[..., 0] << 8 | pairs[..., 1], pairs[..., 2] << 8 | pairs[..., 3]
    if kind not in ("RGB", "RGBX", "RGBA") or order not in _LOWER:
        return None, None
    lower = np.asarray(_read_as(stream, f"{kind};{_LOWER[order]}"))
    values = np.asarray(pixels).astype(np.uint16) << 8 | lower
    return values[..., :3], values[..., 3] if kind == "RGBA" else None


def _read_as(stream: IO[bytes], raw_mode: str) -> "Image":
    """Read a file once more by another layout of its pixels."""
    from PIL import Image

    stream.seek(0)
    image: Any = Image.open(stream, formats=FORMATS)
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    image.load()
    return _upright(image)


def _upright(image: "Image") -> "Image":
    """Return a loaded image, rotated as valid EXIF data says."""
    from PIL import ImageOps

    try:
        # Pillow would copy all pixels of an image that is upright already, as nearly all are.
        return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) in range(2, 9) else image
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return image


def _eight_bits(image: "Image", values: np.ndarray | None) -> "Image":
    """Convert an image to RGB or L with 8 bits per channel."""
    from PIL import Image

    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    # Pillow would clip deeper pixels to 255, which turns a 16-bit scan all white.
    if mode.startswith("I") and values is not None:
        from_zero = values.astype(np.int32) + (1 << 15 if values.dtype == np.int16 else 0)
        return Image.fromarray((from_zero >> 8).astype(np.uint8))
    try:
        if mode in ("1", "LA", "La"):
            return (image.convert("LA") if mode == "La" else image).convert("L")
        return image.convert("RGB")
    except ValueError:
        raise BadImage(f"pixels of mode {mode} cannot be converted to RGB") from None


def _absence(path: str) -> str:
    if os.path.exists(path):
        return "not a regular file"
    # Programs that keep large files elsewhere leave such links.
    return "no such file" + (": this link leads nowhere, so get or mount what it means" if os.path.islink(path) else "")


def _too_large(size: str) -> str:
    return f"decompression bomb: {size} pixels, more than {MAX_PIXELS // 1_000_000} million"


def _reason(error: Exception, head: bytes, stream: IO[bytes]) -> str:
    """Return a reason in words that do not depend on Pillow's version."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return _too_large("far too many")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "truncated"
    if foreign := foreign_of("", head):
        return f"{foreign.name}: {foreign.remedy}"
    known = format_of(head)
    if known is None:
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if known.name == "TIFF" and isinstance(error, UnidentifiedImageError) and (layout := layout_reason(stream)):
        return layout
    return f"damaged or truncated {known.name} ({type(error).__name__})"


def _silence(stack: contextlib.ExitStack) -> None:
    """Suppress Pillow's warnings and log."""
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # A file of more channels than Pillow reads is an error in its log, on the terminal once a file. Another level would
    # do, too, but to set it takes longer than to decode a small image.
    stack.callback(setattr, _pillow_log, "propagate", _pillow_log.propagate)
    _pillow_log.propagate = False


def _keep_blocks(stack: contextlib.ExitStack) -> None:
    """Let Pillow keep the memory of images."""
    from PIL import Image

    pillow: Any = Image.core  # type: ignore[attr-defined]
    before = pillow.get_blocks_max()
    stack.callback(pillow.set_blocks_max, before)
    # Not below what the user has set by Pillow's own variable.
    pillow.set_blocks_max(max(before, _KEPT_BLOCKS))


_pillow_log = logging.getLogger("PIL")
# Without a handler, logging writes errors to the terminal.
_pillow_log.addHandler(logging.NullHandler())
_quiet, _kept_blocks = SharedContext(_silence), SharedContext(_keep_blocks)
