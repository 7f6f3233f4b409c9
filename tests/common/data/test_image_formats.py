"""Images are known by their content, whatever their name; what is not read is known by it too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decoding import BadImage, decode
from common.data.image_formats import FOREIGN_FORMATS, FORMATS, IMAGE_FORMATS, IMAGE_SUFFIXES, foreign_of, format_of
from tests.support.data.folders import counts_of, open_at
from tests.support.data.hostile_files import encode, picture

KINDS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF"]
NAMES = ["photo", "photo.dat", "photo.jpg~", "photo.JPG_large", "photo.1", "photo.part", "photo.dcm"]


def heic(brand: bytes = b"heic") -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(150)


def dicom() -> bytes:
    return bytes(128) + b"DICM" + bytes(50)


def test_table_covers_every_kind() -> None:
    assert list(FORMATS) == KINDS
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    assert not set(IMAGE_SUFFIXES) & {suffix for row in FOREIGN_FORMATS for suffix in row.suffixes}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_by_its_content(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "cat" / name).write_bytes(encode(picture(0, seed=1), kind))
    (tmp_path / "dog" / "1.png").write_bytes(encode(picture(0, seed=2)))

    entries = open_at(tmp_path).entries

    assert counts_of(open_at(tmp_path)) == ({"cat": 1, "dog": 1}, {})
    assert decode(entries.images[0]["image"]).size == (24, 20)
    assert decode(entries.images[0]["image"]).format == kind


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_file_of_an_image_suffix_is_an_entry_also_when_damaged(tmp_path: Path, suffix: str) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"1{suffix.upper()}").write_bytes(b"damaged")

    assert counts_of(open_at(tmp_path)) == ({"cat": 1, "dog": 1}, {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sound.wav", b"RIFF\x10\0\0\0WAVEfmt "),
        ("film.avi", b"RIFF\x10\0\0\0AVI LIST"),
        ("BMW.md", b"BMW is a maker of cars and of motorcycles"),
        ("P1", b"P1 was the first patient of the study"),
        ("notes", b"GIF is a format"),
        ("film.mp4", b"\0\0\0\x18ftypisom\0\0\0\0"),
        ("page.pdf", b"%PDF-1.7"),
        ("empty", b""),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("a.zip", b"PK\x03\x04"),
    ],
)
def test_a_file_that_only_begins_like_an_image_is_not_read(tmp_path: Path, name: str, content: bytes) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"x")
    (tmp_path / "cat" / name).write_bytes(content)

    source = open_at(tmp_path)

    assert counts_of(source) == ({"cat": 1, "dog": 1}, {})
    assert source.not_read[0].startswith("files ")
    assert format_of(content) is None


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        ("", heic(), "HEIC"),
        (".jpg", heic(b"heix"), "HEIC"),
        (".heic", b"cut", "HEIC"),
        ("", heic(b"mif1"), "HEIC"),
        ("", dicom(), "DICOM"),
        (".png", dicom(), "DICOM"),
        (".ima", b"no preamble", "DICOM"),
        (".nef", b"MM\0*", "camera raw"),
        ("", b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        (".svs", b"II*\0", "whole slide"),
        (".nii", bytes(8), "NIfTI"),
    ],
)
def test_foreign_formats_are_named(suffix: str, content: bytes, expected: str) -> None:
    found = foreign_of(suffix, content)

    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize("kind", KINDS)
def test_formats_that_are_read_are_not_foreign(kind: str) -> None:
    head = encode(picture(0, seed=1), kind)[:132]

    assert foreign_of("", head) is None
    assert (found := format_of(head)) is not None
    assert found.name == kind


@pytest.mark.parametrize(
    ("content", "said"),
    [(heic, "HEIC: convert to JPEG or PNG"), (dicom, "DICOM: convert to 16-bit PNG"), (bytes, "empty file")],
)
def test_a_fault_of_a_wrongly_named_file_has_the_remedy(content: Callable[[], bytes], said: str) -> None:
    with pytest.raises(BadImage, match=said):
        decode({"bytes": content(), "path": None})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_cut_file_is_a_fault(kind: str, share: float) -> None:
    noise = np.random.default_rng(5).integers(256, size=(64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), kind)

    with pytest.raises(BadImage, match="truncated"):
        decode({"bytes": whole[: int(len(whole) * share)], "path": None})


@pytest.mark.parametrize(("highest", "stored"), [(65535, 51200), (4095, 3200), (255, 200)])
def test_a_pgm_is_read_in_any_depth(highest: int, stored: int) -> None:
    kind = ">u2" if highest > 255 else "u1"
    content = f"P5\n4 3\n{highest}\n".encode() + np.full(12, stored).astype(kind).tobytes()

    shown = decode({"bytes": content, "path": None})

    assert (shown.mode, shown.format) == ("L", "PPM")
    assert np.asarray(shown)[0, 0] == 200


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_netpbm_and_jpeg2000_keep_their_pixels(mode: str) -> None:
    shades = np.asarray(picture(0, seed=3).convert("L"))
    image = Image.fromarray(shades.astype(np.uint16) * 256) if mode == "I;16" else picture(0, seed=3).convert(mode)
    wanted = shades if mode == "I;16" else np.asarray(image.convert("RGB" if mode == "RGB" else "L"))

    for kind in ("PPM",) if mode == "1" else ("PPM", "JPEG2000"):
        assert np.array_equal(np.asarray(decode({"bytes": encode(image, kind), "path": None})), wanted), kind


def test_rows_are_named_by_pillow() -> None:
    Image.init()

    assert {row.name for row in IMAGE_FORMATS} <= set(Image.OPEN)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\x08\x03\0\0\xea\x60", "IDX arrays"),
        (b"\0\0\x08\x01\0\0\x27\x10", "IDX arrays"),
        (b"\0\0\x0d\x02\0\0\0\x05", "IDX arrays"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\n  <!DOCTYPE html>", "web page"),
        (b"<HTML>", "web page"),
        (b"\0\0\1\0\1\0", None),
        (b"\0\0\0\x18ftypmp42", None),
        (b"version 1", None),
        (b"<svg>", None),
    ],
)
def test_what_stands_for_images_elsewhere_is_known_by_content(head: bytes, name: str | None) -> None:
    found = foreign_of("", head)

    assert (found and found.name) == name
