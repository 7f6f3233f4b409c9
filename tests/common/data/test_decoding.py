"""One image file to pixels: every format, every fault, and the digest of what is shown."""

import contextlib
import hashlib
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from common.data.decoding import FORMATS, MAX_PIXELS, BadImage, decode, decode_in_order, pixel_digest
from tests.support.data.hostile_files import BAD, GOOD, bomb, chunk, deep, encode, picture, rotated


def _cell(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_decode_shows_the_picture_in_every_format(kind: str, tmp_path: Path) -> None:
    image = picture(100, seed=3)
    GOOD[kind](image, tmp_path / kind)

    shown = decode({"bytes": None, "path": str(tmp_path / kind)})

    assert shown.mode == ("L" if any(word in kind for word in ("gray", "la.", "16")) else "RGB")
    assert shown.format in FORMATS
    assert shown.size == image.size
    error = np.abs(np.asarray(shown, dtype=int) - np.asarray(image.convert(shown.mode), dtype=int))
    lossy = any(word in kind for word in ("jpeg", "palette", "gif", "moving", "avif"))
    assert error.mean() <= 8 if lossy else error.max() <= 1


@pytest.mark.parametrize("name", sorted(BAD))
def test_decode_refuses_every_fault(name: str, tmp_path: Path) -> None:
    write, reason = BAD[name]
    write(tmp_path / name)

    with pytest.raises(BadImage) as caught:
        decode({"bytes": None, "path": str(tmp_path / name)})

    assert reason in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("content", [b"", None])
def test_decode_refuses_a_cell_without_content(content: bytes | None) -> None:
    with pytest.raises(BadImage, match=r"empty file|neither a file nor bytes"):
        decode({"bytes": content, "path": None})


def test_decode_prefers_bytes_to_the_path(tmp_path: Path) -> None:
    assert decode({"bytes": encode(picture(0, seed=1)), "path": str(tmp_path / "gone.png")}).size == (24, 20)


def test_decode_gives_the_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (6, 6), (255, 0, 0)), Image.new("RGB", (6, 6), (0, 0, 255))
    content = encode(first, "GIF", save_all=True, append_images=[second])

    assert decode(_cell(content)).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_decode_turns_the_image_as_exif_says(kind: str) -> None:
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 20, 20))

    shown = np.asarray(decode(_cell(rotated(image, kind))).convert("L"), dtype=int)

    assert shown.shape == (20, 40)
    assert shown[:, :18].max() < 40
    assert shown[:, 22:].min() > 215


def test_decode_reads_an_image_whose_exif_is_damaged() -> None:
    image = picture(0, seed=2)
    content = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x7f\x01\x12\0\x03")

    assert decode(_cell(content)).size == image.size


def test_decode_keeps_the_upper_half_of_sixteen_bits() -> None:
    image = picture(0, seed=4)

    shown = decode(_cell(encode(Image.fromarray(deep(image)))))

    assert np.array_equal(np.asarray(shown), np.asarray(image.convert("L")))


def test_decode_drops_transparency_and_keeps_the_stored_colour() -> None:
    image = Image.new("RGBA", (4, 4), (200, 10, 30, 0))

    assert decode(_cell(encode(image))).getpixel((0, 0)) == (200, 10, 30)


def test_decode_checks_the_number_of_pixels_before_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)

    with pytest.raises(BadImage, match="10001 x 10000 pixels"):
        decode(_cell(bomb(10_001, MAX_PIXELS // 10_000)))


@pytest.mark.parametrize("kind", ["PCX", "SGI", "DDS", "ICO", "TGA"])
def test_decode_refuses_formats_that_pillow_would_read(kind: str) -> None:
    content = encode(picture(0, seed=1), kind)

    with pytest.raises(BadImage, match="known format"):
        decode(_cell(content))


def test_decode_refuses_text_that_unpacks_without_end() -> None:
    whole = encode(picture(0, seed=1))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))

    with pytest.raises(BadImage):
        decode(_cell(whole[:33] + text + whole[33:]))


def test_decode_is_silent_in_many_threads_and_leaves_the_filters_as_they_were() -> None:
    noisy = encode(picture(0, seed=1).quantize(8), "PNG", transparency=bytes(range(8)))
    before = list(warnings.filters)

    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(decode, [_cell(noisy)] * 200))

    assert {image.mode for image in images} == {"RGB"}
    assert warnings.filters == before


def test_pixel_digest_is_over_mode_size_and_pixels() -> None:
    image = picture(0, seed=1)
    expected = hashlib.sha256(b"RGB(24, 20)" + image.tobytes()).digest()

    assert pixel_digest(decode(_cell(encode(image)))) == expected
    assert pixel_digest(decode(_cell(encode(image, "BMP")))) == expected
    assert pixel_digest(image.convert("L")) != expected
    assert pixel_digest(Image.frombytes("RGB", (20, 24), image.tobytes())) != expected


def _channels(count: int) -> bytes:
    """A TIFF of 2 x 2 pixels with so many channels of 8 bits."""
    pixels, sizes = bytes(4 * count), struct.pack(f"<{count}H", *[8] * count)
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, count, 8 + len(pixels)), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, count), (278, 3, 1, 2), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    listed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels) + len(sizes)) + pixels + sizes + listed


@pytest.mark.parametrize(
    "content",
    [
        _channels(6),
        _channels(13),
        _channels(64),
        encode(picture(0, seed=1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        encode(picture(0, seed=1))[:40] + chunk(b"iCCP", b"x\0\0broken") + encode(picture(0, seed=1))[40:],
        encode(picture(0, seed=1), "GIF")[:-9],
    ],
    ids=["6 channels", "13 channels", "64 channels", "EXIF", "colour profile", "GIF"],
)
def test_no_file_makes_the_decoder_write_to_the_terminal(
    content: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("PIL").level

    with contextlib.suppress(BadImage):
        decode({"bytes": content, "path": None})

    # Without a handler, logging writes errors to the terminal.
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])
    assert logging.getLogger("PIL").level == level


@pytest.mark.parametrize("of_user", [0, 40])
def test_memory_of_images_is_kept_only_while_they_are_decoded(of_user: int) -> None:
    pillow: Any = Image.core  # type: ignore[attr-defined]
    files = [encode(picture(0, seed=seed)) for seed in range(20)]
    pillow.set_blocks_max(of_user)

    try:
        images = decode_in_order(decode, ((n, _cell(file)) for n, file in enumerate(files)))
        first = next(images)
        during = pillow.get_blocks_max()
        found = dict([first, *images])
        after = pillow.get_blocks_max()
    finally:
        pillow.set_blocks_max(0)

    assert (during, after) == (max(of_user, 8), of_user)
    assert [pixel_digest(image) for image in found.values()] == [pixel_digest(picture(0, seed=n)) for n in range(20)]
