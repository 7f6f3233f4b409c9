"""What a model sees of deep, inverted, signed and transparent files under every setting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config.loading import defaults, override, parse
from common.data.decoding import BadImage, decode, pixel_digest, read_image
from common.data.tones.rendering import Tones, render, tones_of
from tests.support.data.deep_files import (
    CHANNELS_APART,
    EXTRA,
    ORIENTATION,
    WHITE_IS_ZERO,
    png,
    saved,
    scan_values,
    tiff,
)
from tests.support.data.hostile_files import GOOD, picture

NEUTRAL = Tones(16, None, "keep")
DEEP = scan_values(16)
TWELVE = scan_values(12)
TEN = scan_values(10)
SIGNED = (scan_values(12).astype(np.int32) - 1024).astype(np.int16)
COLOUR = scan_values(12, shape=(20, 24, 3))
LOW, HIGH = 200, 1800


def seen(content: bytes, tones: Tones = NEUTRAL) -> np.ndarray:
    """What a model sees of a file."""
    return np.asarray(render(read_image({"bytes": content, "path": None}), tones))


def spread(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """A window by another arithmetic."""
    return np.floor((np.clip(values.astype(float), low, high) - low) * 255 / (high - low) + 0.5).astype(np.uint8)


# file -> (tones, what is seen)
DEPTHS: dict[str, tuple[bytes, Tones, np.ndarray]] = {
    "16 bits, all used": (png(DEEP), NEUTRAL, DEEP >> 8),
    "12 bits in a PNG of 16": (png(TWELVE), Tones(12, None, "keep"), TWELVE >> 4),
    "12 bits that nobody has set": (png(TWELVE), NEUTRAL, TWELVE >> 8),
    "10 bits in a PNG of 16": (png(TEN), Tones(10, None, "keep"), TEN >> 2),
    "14 bits in a TIFF of 16": (tiff(scan_values(14)), Tones(14, None, "keep"), scan_values(14) >> 6),
    "8 bits in a TIFF of 16": (tiff(scan_values(8)), Tones(8, None, "keep"), scan_values(8)),
    "12 bits from the other end": (tiff(TWELVE, order=">"), Tones(12, None, "keep"), TWELVE >> 4),
    "a TIFF of 12 bits, by its tag": (tiff(TWELVE, bits=12), NEUTRAL, TWELVE >> 4),
    "a TIFF of 12 bits from the other end": (tiff(TWELVE, bits=12, order=">"), NEUTRAL, TWELVE >> 4),
    "a TIFF of 12 bits of which 10 are used": (tiff(TEN, bits=12), Tones(10, None, "keep"), TEN >> 2),
    "larger values become white": (png(DEEP), Tones(12, None, "keep"), np.minimum(DEEP >> 4, 255)),
    "12 bits under LZW": (
        saved(Image.fromarray(TWELVE), compression="tiff_lzw"),
        Tones(12, None, "keep"),
        TWELVE >> 4,
    ),
    "signed, with its sign": (tiff(SIGNED), NEUTRAL, (SIGNED.astype(int) + 32768) >> 8),
    "signed from the other end": (tiff(SIGNED, order=">"), NEUTRAL, (SIGNED.astype(int) + 32768) >> 8),
    "signed of 12 bits": (tiff(SIGNED), Tones(12, None, "keep"), np.clip((SIGNED.astype(int) + 2048) >> 4, 0, 255)),
    "colour of 12 bits in a PNG of 16": (png(COLOUR, colour_type=2), Tones(12, None, "keep"), COLOUR >> 4),
    "colour of 12 bits in a TIFF of 16": (tiff(COLOUR), Tones(12, None, "keep"), COLOUR >> 4),
    "colour of 12 bits from the other end": (tiff(COLOUR, order=">"), Tones(12, None, "keep"), COLOUR >> 4),
    "colour under deflate": (tiff(COLOUR, deflate=True), Tones(12, None, "keep"), COLOUR >> 4),
    "colour from the other end under deflate": (
        tiff(COLOUR, deflate=True, order=">"),
        Tones(12, None, "keep"),
        COLOUR >> 4,
    ),
    "colour that is turned": (tiff(COLOUR, more={ORIENTATION: 6}), Tones(12, None, "keep"), np.rot90(COLOUR, -1) >> 4),
    "gray that is turned": (tiff(TWELVE, more={ORIENTATION: 6}), Tones(12, None, "keep"), np.rot90(TWELVE, -1) >> 4),
    "colour beside something else": (
        tiff(np.concatenate([COLOUR, COLOUR[..., :1]], axis=2), more={EXTRA: 0}),
        Tones(12, None, "keep"),
        COLOUR >> 4,
    ),
    "colour beside opacity": (
        tiff(np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 65535)], axis=2), more={EXTRA: 2}),
        Tones(12, None, "keep"),
        COLOUR >> 4,
    ),
    "colour multiplied by its opacity has its upper 8 bits": (
        tiff(np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 65535)], axis=2), more={EXTRA: 1}),
        Tones(12, None, "keep"),
        COLOUR >> 8,
    ),
    "8 bits stay": (saved(picture(0, seed=1), "PNG"), Tones(10, None, "keep"), np.asarray(picture(0, seed=1))),
}


@pytest.mark.parametrize("case", sorted(DEPTHS))
def test_render_keeps_the_upper_eight_of_the_bits_that_are_used(case: str) -> None:
    content, tones, expected = DEPTHS[case]

    assert np.array_equal(seen(content, tones), expected)


GRAY = np.asarray(picture(0, seed=3).convert("L"))
WINDOWS: dict[str, tuple[bytes, tuple[int, int], np.ndarray]] = {
    "12 bits in a PNG of 16": (png(TWELVE), (LOW, HIGH), spread(TWELVE, LOW, HIGH)),
    "16 bits": (tiff(DEEP), (1000, 50_000), spread(DEEP, 1000, 50_000)),
    "signed": (tiff(SIGNED), (-1000, 400), spread(SIGNED, -1000, 400)),
    "signed from the other end": (tiff(SIGNED, order=">"), (-160, 240), spread(SIGNED, -160, 240)),
    "8 bits": (saved(Image.fromarray(GRAY)), (20, 90), spread(GRAY, 20, 90)),
    "8 bits with opacity": (saved(Image.fromarray(GRAY).convert("LA"), "PNG"), (20, 90), spread(GRAY, 20, 90)),
    "white is 0": (tiff(TWELVE, white=WHITE_IS_ZERO), (LOW, HIGH), 255 - spread(TWELVE, LOW, HIGH)),
    "white is 0, at 8 bits": (
        tiff(GRAY, white=WHITE_IS_ZERO, bits=8),
        (20, 90),
        255 - spread(GRAY, 20, 90),
    ),
    "white is 0, signed": (tiff(SIGNED, white=WHITE_IS_ZERO), (-1000, 400), 255 - spread(SIGNED, -1000, 400)),
    "colour has no gray": (saved(picture(0, seed=1), "PNG"), (20, 90), np.asarray(picture(0, seed=1))),
    "1 bit has no shades": (
        saved(Image.fromarray(GRAY > 60), "PNG"),
        (20, 90),
        np.where(GRAY > 60, 255, 0),
    ),
}


@pytest.mark.parametrize("case", sorted(WINDOWS))
@pytest.mark.parametrize("depth", [16, 12])
def test_render_spreads_a_window_of_stored_values(case: str, depth: int) -> None:
    content, window, expected = WINDOWS[case]

    assert np.array_equal(seen(content, Tones(depth, window, "keep")), expected)


def test_render_shows_white_that_is_stored_as_zero_alike_at_every_depth() -> None:
    eight = np.asarray(picture(0, seed=5).convert("L"))
    deep = eight.astype(np.uint16) * 257
    files = [
        tiff(255 - eight, white=WHITE_IS_ZERO, bits=8),
        tiff(65535 - deep, white=WHITE_IS_ZERO),
        tiff(65535 - deep, white=WHITE_IS_ZERO, order=">"),
        tiff(4095 - (deep >> 4), white=WHITE_IS_ZERO, bits=12),
        tiff(4095 - (deep >> 4), white=WHITE_IS_ZERO, bits=12, order=">"),
        saved(Image.fromarray(65535 - deep), compression="tiff_deflate", tiffinfo={262: WHITE_IS_ZERO}),
        # Pillow turns 8 bits when it writes them, too.
        saved(Image.fromarray(eight), compression="tiff_lzw", tiffinfo={262: WHITE_IS_ZERO}),
        tiff((32767 - deep.astype(np.int32)).astype(np.int16), white=WHITE_IS_ZERO),
        png(deep),
    ]

    for number, content in enumerate(files):
        assert np.array_equal(seen(content), eight), number


def _with_alpha(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([np.atleast_3d(values), np.atleast_3d(alpha)], axis=2)


HOLE = np.where(np.arange(24) % 3 == 0, 0, 255).astype(np.uint8)[None, :].repeat(20, axis=0)
RED = Image.merge("RGB", [Image.new("L", (24, 20), value) for value in (200, 10, 30)])
CLEAR = HOLE == 0


def _palette() -> Image.Image:
    image = Image.fromarray(CLEAR.astype(np.uint8)).convert("P")
    image.putpalette([200, 10, 30, 0, 0, 0])
    return image


def _gif() -> bytes:
    return saved(_palette(), "GIF", transparency=1)


RED16 = np.broadcast_to(np.array([200, 10, 30], np.uint16) << 8, (20, 24, 3))
ALPHA16 = HOLE.astype(np.uint16) * 257
# Red, or gray of 200, with holes of which the stored colour is black unless named otherwise.
HOLES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "RGBA": (saved(Image.merge("RGBA", [*RED.split(), Image.fromarray(HOLE)]), "PNG"), (200, 10, 30)),
    "RGBA in WebP": (
        saved(Image.merge("RGBA", [*RED.split(), Image.fromarray(HOLE)]), "WEBP", lossless=True, exact=True),
        (200, 10, 30),
    ),
    "RGBA in TIFF": (saved(Image.merge("RGBA", [*RED.split(), Image.fromarray(HOLE)])), (200, 10, 30)),
    "LA": (saved(Image.merge("LA", [Image.new("L", (24, 20), 200), Image.fromarray(HOLE)]), "PNG"), (200,)),
    "a palette with a transparent colour": (saved(_palette(), "PNG", transparency=1), (200, 10, 30)),
    "a palette with opacities": (saved(_palette(), "PNG", transparency=b"\xff\x00"), (200, 10, 30)),
    "GIF": (_gif(), (200, 10, 30)),
    "a transparent gray": (
        saved(Image.fromarray(np.where(CLEAR, 7, 200).astype(np.uint8)), "PNG", transparency=7),
        (200,),
    ),
    "a transparent gray of 16 bits": (png(np.where(CLEAR, 7, 200 << 8), clear=b"\0\x07"), (200,)),
    "a transparent colour of 16 bits": (
        png(np.where(CLEAR[..., None], 7, RED16), colour_type=2, clear=b"\0\x07" * 3),
        (200, 10, 30),
    ),
    "RGBA of 16 bits": (png(_with_alpha(RED16, ALPHA16), colour_type=6), (200, 10, 30)),
    "LA of 16 bits": (png(_with_alpha(RED16[..., 0], ALPHA16), colour_type=4), (200,)),
}


@pytest.mark.parametrize("case", sorted(HOLES))
@pytest.mark.parametrize(("background", "ground"), [("white", 255), ("black", 0)])
def test_render_puts_the_background_under_transparent_pixels(case: str, background: str, ground: int) -> None:
    content, colour = HOLES[case]
    shown = seen(content, Tones(16, None, background))

    shown = shown[..., : len(colour)] if shown.ndim == 3 else shown[..., None]
    assert np.array_equal(shown, np.where(CLEAR[..., None], ground, np.array(colour)))


def test_render_blends_by_half() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 0, 128))

    assert seen(saved(image, "PNG"), Tones(16, None, "white"))[0, 0].tolist() == [227, 177, 127]
    assert seen(saved(image, "PNG"), Tones(16, None, "black"))[0, 0].tolist() == [100, 50, 0]
    assert seen(saved(image, "PNG"))[0, 0].tolist() == [200, 100, 0]


def test_render_takes_opacity_of_twelve_bits_for_whole() -> None:
    values = _with_alpha(TWELVE, np.full_like(TWELVE, 4095))

    assert np.array_equal(seen(png(values, colour_type=4), Tones(12, None, "white")), TWELVE >> 4)


def _every_file() -> dict[str, bytes]:
    return {name: case[0] for cases in (DEPTHS, WINDOWS, HOLES) for name, case in cases.items()}


@pytest.mark.parametrize("name", sorted(_every_file()))
def test_no_setting_moves_a_fingerprint_or_fails(name: str) -> None:
    cell = {"bytes": _every_file()[name], "path": None}
    stored = read_image(cell)
    before = pixel_digest(stored.canonical)

    for tones in (NEUTRAL, Tones(8, (-5, 70), "white"), Tones(12, (0, 1), "black"), Tones(10, None, "white")):
        assert render(stored, tones).mode in ("L", "RGB")
        assert pixel_digest(stored.canonical) == pixel_digest(decode(cell)) == before


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_neutral_tones_show_what_earlier_versions_showed(kind: str, tmp_path: Any) -> None:
    GOOD[kind](picture(100, seed=3), tmp_path / kind)
    cell = {"bytes": None, "path": str(tmp_path / kind)}

    assert np.array_equal(np.asarray(render(read_image(cell), NEUTRAL)), np.asarray(decode(cell)))


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({}, {}),
        ({"data.bit-depth": 12}, {"bit-depth": 12}),
        ({"data.gray-window": "-1000,400"}, {"gray-window": [-1000, 400]}),
        ({"data.background": "white", "data.bit-depth": 14}, {"bit-depth": 14, "background": "white"}),
    ],
)
def test_tones_state_what_differs_from_neutral_ones(settings: dict[str, Any], facts: dict[str, Any]) -> None:
    tones = tones_of(parse(override(defaults(), settings)).data)

    assert tones.as_json() == facts
    assert tones.neutral == (not facts)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(COLOUR, more=CHANNELS_APART), "channels are stored apart"),
        (saved(Image.fromarray(np.ones((9, 9), np.float32))), "32 bits per channel .floating point.*scaled"),
        (saved(Image.fromarray(np.ones((9, 9), np.int32))), "32 bits per channel .signed whole numbers.*scaled"),
        (
            tiff(TEN, bits=16).replace(
                b"\x02\x01\x03\x00\x01\x00\x00\x00\x10", b"\x02\x01\x03\x00\x01\x00\x00\x00\x0a"
            ),
            "TIFF",
        ),
    ],
    ids=["channels apart", "floating point", "32 bits", "10 bits by the tag"],
)
def test_what_cannot_be_read_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode({"bytes": content, "path": None})


@pytest.mark.parametrize("make", [lambda: tiff(SIGNED), lambda: tiff(TWELVE, order=">", white=WHITE_IS_ZERO)])
def test_files_that_earlier_versions_refused_are_read(make: Callable[[], bytes]) -> None:
    assert decode({"bytes": make(), "path": None}).mode == "L"
