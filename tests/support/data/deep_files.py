"""Files of 16, 12 and 1 bits, signed, coloured and transparent, written byte by byte; needs no pytest."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.support.data.hostile_files import chunk

_FORMATS = {3: "H", 4: "I"}
ORIENTATION, CHANNELS_APART, EXTRA = 274, {284: 2}, 338
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2


def png(values: np.ndarray, *, colour_type: int = 0, clear: bytes = b"") -> bytes:
    """A PNG of 16 bits from (h, w) or (h, w, channels) values; `clear` is the colour that is transparent."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *([(b"tRNS", clear)] if clear else []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(
    values: np.ndarray,
    *,
    white: int = BLACK_IS_ZERO,
    order: str = "<",
    bits: int = 16,
    deflate: bool = False,
    more: dict[int, int] | None = None,
) -> bytes:
    """A TIFF from (h, w) or (h, w, channels) values, with more tags; signed values give a signed file."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    sign = values.dtype.kind == "i"
    content = _packed(values) if bits == 12 else values.astype(f"{order}{values.dtype.kind}{bits // 8}").tobytes()
    content = zlib.compress(content) if deflate else content
    tags: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [8 if deflate else 1]),
        (262, 3, [RGB if channels > 2 else white]),
        (273, 4, [0]),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(content)]),
        *([(339, 3, [2] * channels)] if sign else []),
        *((tag, 3, [number]) for tag, number in (more or {}).items()),
    ]
    tags.sort()
    after = 8 + 2 + 12 * len(tags) + 4
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels) if channels > 2 else b""
    entries = b""
    for tag, kind, numbers in tags:
        shown = [after + len(extra)] if tag == 273 else numbers
        field = struct.pack(f"{order}{len(shown)}{_FORMATS[kind]}", *shown).ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(shown))
        entries += field if len(field) == 4 else struct.pack(f"{order}I", after)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + extra + content


def _packed(values: np.ndarray) -> bytes:
    """Rows of 12 bits a value, the highest bit first."""
    bits = (values[..., None] >> np.arange(11, -1, -1)) & 1
    return b"".join(np.packbits(row.reshape(-1)).tobytes() for row in bits.astype(np.uint8))


def saved(image: Image.Image, kind: str = "TIFF", **options: Any) -> bytes:
    """A file as Pillow writes it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scan_values(bits: int = 12, *, seed: int = 0, shape: tuple[int, ...] = (20, 24)) -> np.ndarray:
    """Values that use all of `bits` bits, uint16."""
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint16)
