"""Copies of decoded images: as many as there is memory for, scaled as models take them.

Drives `common.data.inputs.input_format`.
"""

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

from common.data.feature_extraction import scaled
from common.data.inputs import scaled_copies
from common.data.inputs.input_format import InputFormat, pixels_format
from common.data.inputs.scaled_copies import ScaledCopies

WANTED = pixels_format(8, 3, "bilinear")
LARGER = pixels_format(64, 3, "bilinear")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 20, 3)).astype(np.uint8))


@pytest.mark.parametrize("known", [WANTED, None], ids=["format known", "format not known yet"])
def test_a_copy_is_scaled_as_the_image_itself_would_be(known: InputFormat | None) -> None:
    copies = ScaledCopies(lambda: known)

    copies.offer(picture(1), b"one")

    assert np.array_equal(copies.scaled(b"one", WANTED), scaled(picture(1), 8, 3, "bilinear"))
    assert (copies.serves(b"one", WANTED), copies.serves(b"two", WANTED)) == (True, False)


@pytest.mark.parametrize(
    ("known", "one"), [(WANTED, 8 * 8 * 3), (None, 12 * 20 * 3)], ids=["format known", "format not known yet"]
)
def test_copies_end_where_memory_does(known: InputFormat | None, one: int) -> None:
    copies = ScaledCopies(lambda: known, memory_bytes=2 * one + 1)

    for number in (1, 1, 2, 3):
        copies.offer(picture(number), b"%d" % number)

    assert [copies.serves(b"%d" % number, WANTED) for number in (1, 2, 3)] == [True, True, False]
    copies.clear()
    copies.offer(picture(1), b"1")
    assert not copies.serves(b"1", WANTED)


def test_an_image_that_finds_no_room_is_not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(scaled_copies, "scaled", lambda *given: calls.append(1) or scaled(*given))
    copies = ScaledCopies(lambda: WANTED, memory_bytes=8 * 8 * 3 + 100)

    for number in range(3):
        copies.offer(picture(number), b"%d" % number)

    assert len(calls) == 1


def test_an_image_that_is_smaller_than_its_copy_is_kept_as_it_is() -> None:
    wanted, room = LARGER, 5 * 12 * 20 * 3
    copies = ScaledCopies(lambda: wanted, memory_bytes=room)

    for number in range(6):
        copies.offer(picture(number), b"%d" % number)

    assert [copies.serves(b"%d" % number, wanted) for number in range(6)] == [True] * 5 + [False]
    assert np.array_equal(copies.scaled(b"3", wanted), scaled(picture(3), 64, 3, "bilinear"))


@pytest.mark.parametrize(
    "known", [pixels_format(64, 3, "bilinear"), None], ids=["format known", "format not known yet"]
)
def test_pixels_alone_are_kept(known: InputFormat | None) -> None:
    copies, image = ScaledCopies(lambda: known), picture(1)
    image.info["icc_profile"] = bytes(1 << 20)
    kept = weakref.ref(image)

    copies.offer(image, b"one")
    del image
    gc.collect()

    assert copies.serves(b"one", LARGER)
    assert kept() is None


def test_gray_images_are_copied_as_colours_and_as_gray() -> None:
    gray, copies = picture(1).convert("L"), ScaledCopies(lambda: None)

    copies.offer(gray, b"gray")

    for channels in (1, 3):
        wanted = pixels_format(8, channels, "bicubic")
        assert np.array_equal(copies.scaled(b"gray", wanted), scaled(gray, 8, channels, "bicubic"))


@pytest.mark.parametrize(
    ("wanted", "served"),
    [
        (WANTED, True),
        (pixels_format(9, 3, "bilinear"), False),
        (pixels_format(8, 1, "bilinear"), False),
        (pixels_format(8, 3, "bicubic"), False),
    ],
)
def test_a_copy_that_was_scaled_by_a_wrong_guess_is_not_used(wanted: InputFormat, served: bool) -> None:
    copies, small = ScaledCopies(lambda: WANTED), Image.fromarray(np.zeros((4, 4, 3), np.uint8))

    copies.offer(picture(1), b"scaled")
    copies.offer(small, b"as it is")

    assert copies.serves(b"scaled", wanted) == served
    assert copies.serves(b"as it is", wanted)


def test_a_guess_is_for_images_that_would_take_much_more_room() -> None:
    copies, large = ScaledCopies(lambda: None), Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    copies.guess = WANTED
    other = pixels_format(8, 3, "bicubic")

    copies.offer(picture(1), b"small")
    copies.offer(large, b"large")

    assert (copies.serves(b"small", other), copies.serves(b"large", other)) == (True, False)
    assert copies.scaled(b"large", WANTED).shape == (8, 8, 3)


def test_memory_of_a_forgotten_image_is_for_others() -> None:
    copies = ScaledCopies(lambda: WANTED, memory_bytes=8 * 8 * 3)

    kept = [copies.offer(picture(number), b"%d" % number) for number in range(2)]
    copies.forget(b"0")

    assert kept == [True, False]
    assert copies.offer(picture(2), b"2")
    assert not copies.offer(picture(0), b"0")
    assert [copies.serves(b"%d" % number, WANTED) for number in range(3)] == [False, False, True]
