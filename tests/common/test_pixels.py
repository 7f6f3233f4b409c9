"""Images as pixels: cut square, collected for a network trained from scratch, and hashed."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image

from common.data.prepared import no_progress
from common.errors import DataError
from common.features import collect_pixels, square

_SILENT = no_progress(0, "")


def _images(count: int, *, seed: int = 0, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(count)]


def _rows(images: list[Image.Image]) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": ImageColumn()}))


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (33, 90)])
def test_square_cuts_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    short = min(size)
    image = Image.new("L", size, 255)
    left, top = (width - short) // 2, (height - short) // 2
    image.paste(0, (left, top, left + short, top + short))

    cut = square(image, 32)

    assert cut.size == (32, 32)
    assert np.asarray(cut)[2:-2, 2:-2].max() == 0


def test_square_does_not_touch_an_image_that_has_the_size() -> None:
    image = _images(1, side=32)[0]

    assert square(image, 32) is image


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_collect_pixels_keeps_the_pixels_when_sizes_agree(mode: str, channels: int) -> None:
    images = [image.convert(mode) for image in _images(3, side=6)]

    pixels, digests = collect_pixels(_rows(images), side=None, progress=_SILENT)

    assert (pixels.shape, pixels.dtype) == ((3, 6, 6, channels), np.uint8)
    shown = images[1].convert("L" if channels == 1 else "RGB")
    assert np.array_equal(pixels[1], np.asarray(shown).reshape(6, 6, channels))
    assert len(np.unique(digests, axis=0)) == 3


def test_collect_pixels_gives_gray_images_three_channels_when_others_have_them() -> None:
    gray, colour = _images(2, side=6)

    pixels, _ = collect_pixels(_rows([gray.convert("L"), colour]), side=None, progress=_SILENT)

    assert pixels.shape == (2, 6, 6, 3)
    assert (pixels[0] == np.asarray(gray.convert("L"))[:, :, None]).all()


def test_collect_pixels_refuses_mixed_sizes_unless_a_side_is_given() -> None:
    rows = _rows([*_images(1, side=6), *_images(1, side=7)])

    with pytest.raises(DataError, match=r"differ in size: set data\.image-size"):
        collect_pixels(rows, side=None, progress=_SILENT)
    assert collect_pixels(rows, side=5, progress=_SILENT)[0].shape == (2, 5, 5, 3)


@pytest.mark.parametrize("size", [(8, 6), (3, 3)], ids=["not-square", "too-small"])
def test_collect_pixels_refuses_images_no_network_can_take(size: tuple[int, int]) -> None:
    images = [Image.new("RGB", size, colour) for colour in ("red", "blue")]

    with pytest.raises(DataError, match=r"data\.image-size"):
        collect_pixels(_rows(images), side=None, progress=_SILENT)


def test_collect_pixels_scales_sixteen_bits_to_eight() -> None:
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)

    pixels, _ = collect_pixels(_rows([Image.fromarray(deep)]), side=None, progress=_SILENT)

    assert np.abs(pixels[0, :, :, 0].astype(int) - deep // 257).max() <= 1


def test_digests_follow_the_shown_pixels_and_not_the_file() -> None:
    image = _images(1, side=6)[0]
    turned, stream = image.transpose(Image.Transpose.ROTATE_90), io.BytesIO()
    orientation = Image.Exif()
    orientation[0x0112] = 6
    turned.save(stream, "PNG", exif=orientation)
    column = [image, image.convert("RGBA"), {"bytes": stream.getvalue(), "path": None}, turned]

    rows = Dataset.from_dict({"image": column}, features=Features({"image": ImageColumn()}))
    _, digests = collect_pixels(rows, side=None, progress=_SILENT)

    assert len(np.unique(digests[:3], axis=0)) == 1
    assert not np.array_equal(digests[3], digests[0])


def test_digests_differ_between_shapes_of_the_same_bytes() -> None:
    wide, tall = Image.new("RGB", (8, 4)), Image.new("RGB", (4, 8))

    _, digests = collect_pixels(_rows([wide, tall]), side=4, progress=_SILENT)

    assert not np.array_equal(*digests)


def test_an_unreadable_image_is_named_by_its_file() -> None:
    rows = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": "/ward-7/x.png"}]}, features=Features({"image": ImageColumn()})
    )

    with pytest.raises(DataError, match=r"/ward-7/x\.png"):
        collect_pixels(rows, side=None, progress=_SILENT)
