"""A folder with an image of every format and a file of every fault, made afresh; needs no pytest."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Build = Callable[[Image.Image, Path], None]
ORIENTATION = 0x0112


def build_hostile_folder(root: Path) -> dict[str, str]:
    """Two classes, `dark` and `light`, of 26 good images each, and one file of each fault.

    Args:
        root: Where to write; made if it is not there.

    Returns:
        Path below `root` of each bad file -> a part of the reason it is refused for.
    """
    for name, low, first in (("dark", 0, 100), ("light", 128, 0)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(26):
            kind = sorted(GOOD)[number % len(GOOD)]
            GOOD[kind](picture(low, seed=first + number), root / name / f"{number:02d}-{kind}")
    expected = {}
    for number, (name, (write, reason)) in enumerate(sorted(BAD.items())):
        place = f"{('dark', 'light')[number % 2]}/{name}"
        write(root / place)
        expected[place] = reason
    for place in (".hidden/1.png", "dark/.hidden.png"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(b"not looked at")
    (root / "dark" / "notes.txt").write_text("no image, and not called one")
    return expected


def picture(low: int, *, seed: int) -> Image.Image:
    """24 x 20 pixels of smooth colour between `low` and `low` + 127."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(low, low + 128, size=(3, 4, 3), dtype=np.uint8))
    return coarse.resize((24, 20), Image.Resampling.BILINEAR)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The content of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _saved(kind: str, mode: str = "RGB", **options: object) -> Build:
    return lambda image, file: file.write_bytes(encode(image.convert(mode), kind, **options)) and None


def deep(image: Image.Image) -> np.ndarray:
    """The gray values as 16 bits, the upper 8 of which are those of the picture."""
    return np.asarray(image.convert("L")).astype(np.uint16) * 256 + 7


def _deep(kind: str) -> Build:
    return lambda image, file: file.write_bytes(encode(Image.fromarray(deep(image)), kind)) and None


def _deep_big_endian(image: Image.Image, file: Path) -> None:
    file.write_bytes(encode(Image.frombytes("I;16B", image.size, deep(image).astype(">u2").tobytes()), "TIFF"))


def _palette(image: Image.Image, file: Path) -> None:
    file.write_bytes(encode(image.quantize(32), "PNG", transparency=bytes(range(0, 256, 8))))


def _two_frames(kind: str) -> Build:
    def write(image: Image.Image, file: Path) -> None:
        file.write_bytes(encode(image, kind, save_all=True, append_images=[image.rotate(180)]))

    return write


def _with_alpha(mode: str) -> Build:
    def write(image: Image.Image, file: Path) -> None:
        image = image.convert(mode)
        image.putalpha(100)
        file.write_bytes(encode(image))

    return write


def rotated(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """A file that shows `image` only if EXIF is heeded."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encode(image.transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **options)


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises that many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def _float(file: Path) -> None:
    file.write_bytes(encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"))


def _bytes(make: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(make()) and None


def _empty(file: Path) -> None:
    file.touch()


def _broken_link(file: Path) -> None:
    file.symlink_to(file.parent / "gone.jpg")


def _cut(kind: str, share: float) -> Callable[[Path], None]:
    def make() -> bytes:
        noise = np.random.default_rng(5).integers(256, size=(64, 64, 3), dtype=np.uint8)
        whole = encode(Image.fromarray(noise), kind)
        return whole[: int(len(whole) * share)]

    return _bytes(make)


GOOD: dict[str, Build] = {
    "jpeg.jpg": _saved("JPEG", quality=95),
    "jpeg-gray.jpeg": _saved("JPEG", "L", quality=95),
    "jpeg-cmyk.JPG": _saved("JPEG", "CMYK", quality=95),
    "jpeg-turned.jpg": lambda image, file: file.write_bytes(rotated(image, quality=95)) and None,
    "png.png": _saved("PNG"),
    "png-gray.PNG": _saved("PNG", "L"),
    "png-palette.png": _palette,
    "png-rgba.png": _with_alpha("RGB"),
    "png-la.png": _with_alpha("L"),
    "png-16.png": _deep("PNG"),
    "png-turned.png": lambda image, file: file.write_bytes(rotated(image, "PNG")) and None,
    "webp.webp": _saved("WEBP", lossless=True),
    "webp-moving.webp": _two_frames("WEBP"),
    "bmp.bmp": _saved("BMP"),
    "tiff.tif": _saved("TIFF"),
    "tiff-lzw.tiff": _saved("TIFF", compression="tiff_lzw"),
    "tiff-cmyk.tif": _saved("TIFF", "CMYK"),
    "tiff-16.tif": _deep("TIFF"),
    "tiff-16-big-endian.tif": _deep_big_endian,
    "tiff-pages.tif": _two_frames("TIFF"),
    "gif.gif": _saved("GIF"),
    "gif-moving.gif": _two_frames("GIF"),
    "jp2.jp2": _saved("JPEG2000"),
    "ppm.ppm": _saved("PPM"),
    "avif.avif": _saved("AVIF", quality=95, subsampling="4:4:4"),
}
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty.png": (_empty, "empty file"),
    "text.jpg": (_bytes(lambda: b"<html>404 not found</html>"), "web page: download the file again"),
    "pointer.jpg": (_bytes(lambda: b"version https://git-lfs.github.com/spec/v1\noid"), "`git lfs pull` fetches"),
    "zip.png": (_bytes(lambda: b"PK\x03\x04" + bytes(60)), "not an image of a known format"),
    "vector.gif": (
        _bytes(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not an image of a known format",
    ),
    "cut-jpeg.jpg": (_cut("JPEG", 0.6), "truncated"),
    "cut-png.png": (_cut("PNG", 0.6), "truncated"),
    "cut-webp.webp": (_cut("WEBP", 0.6), "truncated"),
    "cut-bmp.bmp": (_cut("BMP", 0.6), "truncated"),
    "cut-tiff.tif": (_cut("TIFF", 0.6), "truncated"),
    "cut-gif.gif": (_cut("GIF", 0.6), "truncated"),
    "header-only.jpg": (_bytes(lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0"), "truncated"),
    "bomb.png": (_bytes(lambda: bomb(40_000, 40_000)), "decompression bomb"),
    "small-bomb.png": (_bytes(lambda: bomb(10_001, 10_000)), "decompression bomb"),
    "one-pixel.png": (_bytes(lambda: encode(Image.new("RGB", (1, 1)))), "at least 2"),
    "line.bmp": (_bytes(lambda: encode(Image.new("L", (50, 1)), "BMP")), "at least 2"),
    "float.tif": (_float, "32 bits per channel (floating point)"),
    "broken-link.jpg": (_broken_link, "no such file"),
    "pipe.png": (os.mkfifo, "not a regular file"),
}
