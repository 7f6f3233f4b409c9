"""Facts about stored values, the warning about an empty range, and where people read them.

Drives `common.data.tones.value_facts`.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from common.config.schema import RunConfig
from common.data.decoding import read_image
from common.data.scan import Scan, scan_source
from common.data.source_report import inspect_source, show_facts
from common.data.sources.registry import open_source
from common.data.tones.range_report import unused_range, unused_ranges, value_ranges
from common.data.tones.rendering import Tones
from common.data.tones.value_facts import BLACK_BELOW, OPAQUE, TRANSPARENT, ValueFacts, value_facts
from common.system.progress import no_progress
from tests.common.data.tones.test_rendering import DEPTHS, HOLES, WINDOWS
from tests.support.data.deep_files import WHITE_IS_ZERO, png, saved, tiff

MakeConfig = Callable[..., RunConfig]
NEUTRAL = Tones(16, None, "keep")
RAMP = np.arange(480, dtype=np.uint16).reshape(20, 24)


def facts(content: bytes) -> ValueFacts:
    """The facts that a scan keeps of a file."""
    stored = read_image({"bytes": content, "path": None})
    return value_facts(stored, np.asarray(stored.canonical))


def _holes(below: int) -> Image.Image:
    image = Image.new("LA", (24, 20), (200, 255))
    image.paste((below, 0), (0, 0, 5, 5))
    return image


# file -> (bits, least, largest, constant, transparency, whether neutral tones show the canonical decode)
FACTS: dict[str, tuple[bytes, tuple[int, int, int, bool, int, bool]]] = {
    "12 bits in 16": (png(RAMP * 8), (16, 0, 3832, False, OPAQUE, True)),
    "12 bits by the tag": (tiff(RAMP * 8, bits=12), (12, 0, 3832, False, OPAQUE, False)),
    "signed": (tiff(RAMP.astype(np.int16) - 100), (-16, -100, 379, False, OPAQUE, True)),
    "white is 0": (tiff(RAMP * 8, white=WHITE_IS_ZERO), (16, 0, 3832, False, OPAQUE, False)),
    "white is 0 at 8 bits": (
        tiff((RAMP // 4).astype(np.uint8), white=WHITE_IS_ZERO, bits=8),
        (8, 0, 119, False, OPAQUE, True),
    ),
    "8 bits of one value": (saved(Image.new("L", (9, 9), 7), "PNG"), (8, 7, 7, True, OPAQUE, True)),
    "one colour": (saved(Image.new("RGB", (9, 9), (7, 8, 9)), "PNG"), (8, 7, 9, True, OPAQUE, True)),
    "16 bits of one value": (png(np.full((9, 9), 700)), (16, 700, 700, True, OPAQUE, True)),
    "16 bits that look black": (png(RAMP // 2), (16, 0, 239, False, OPAQUE, True)),
    "colour of 16 bits": (
        png(np.stack([RAMP, RAMP * 2, RAMP * 3], axis=2), colour_type=2),
        (16, 0, 1437, False, OPAQUE, True),
    ),
    "black holes": (saved(_holes(0), "PNG"), (8, 0, 200, False, BLACK_BELOW, True)),
    "gray holes": (saved(_holes(9), "PNG"), (8, 9, 200, False, TRANSPARENT, True)),
    "a drawing that is all in its opacity": (
        saved(Image.merge("RGBA", [Image.new("L", (24, 20))] * 3 + [Image.fromarray(RAMP.astype(np.uint8))]), "PNG"),
        (8, 0, 0, True, BLACK_BELOW, True),
    ),
    "nothing but holes": (saved(Image.new("RGBA", (9, 9)), "PNG"), (8, 0, 0, True, BLACK_BELOW, True)),
    "opacity without a hole": (saved(Image.new("RGBA", (9, 9), (7, 7, 7, 255)), "PNG"), (8, 7, 7, True, OPAQUE, True)),
}


@pytest.mark.parametrize("case", sorted(FACTS))
def test_facts_are_those_of_the_stored_values(case: str) -> None:
    content, expected = FACTS[case]

    assert facts(content) == ValueFacts(*expected)


@pytest.mark.parametrize("case", sorted(HOLES))
def test_every_kind_of_transparency_is_noticed(case: str) -> None:
    assert facts(HOLES[case][0]).transparency != OPAQUE


@pytest.mark.parametrize("name", sorted({**DEPTHS, **WINDOWS}))
def test_files_without_transparency_are_opaque(name: str) -> None:
    assert facts({**DEPTHS, **WINDOWS}[name][0]).transparency == OPAQUE


@pytest.fixture
def scan_of(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scan]:
    """Scan files that are divided between two classes."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))

    def scanned(*files: bytes) -> Scan:
        for number, content in enumerate(files):
            file = tmp_path / "scans" / "ab"[number % 2] / str(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".png" if content.startswith(b"\x89PNG") else ".tif").write_bytes(content)
        return scan_source(
            open_source(make_config({"data.source": str(tmp_path / "scans")}).data), progress=no_progress
        )

    return scanned


def _up_to(largest: int) -> np.ndarray:
    return np.linspace(0, largest, 480).astype(np.uint16).reshape(20, 24)


# (files, tones, what is said)
UNUSED: dict[str, tuple[list[bytes], Tones, list[str]]] = {
    "12 bits": (
        [png(_up_to(4000)), png(_up_to(900))],
        NEUTRAL,
        ["all 2 images", "4,000", "65,535", "data.bit-depth=12"],
    ),
    "12 bits that are set": ([png(_up_to(4000))] * 2, Tones(12, None, "keep"), []),
    "10 of 12 bits": ([png(_up_to(1000))] * 2, Tones(12, None, "keep"), ["1,000", "4,095", "data.bit-depth=10"]),
    "one image reaches": ([png(_up_to(4000)), png(_up_to(60_000))], NEUTRAL, []),
    "just reached": ([tiff(_up_to(49_152))] * 2, NEUTRAL, []),
    "just not reached": ([tiff(_up_to(49_150))] * 2, NEUTRAL, ["49,150", "65,535"]),
    "dark at 8 bits": ([saved(Image.fromarray(_up_to(120).astype(np.uint8)), "PNG")] * 2, NEUTRAL, ["120", "255"]),
    "bright at 8 bits": ([saved(Image.fromarray(_up_to(200).astype(np.uint8)), "PNG")] * 2, NEUTRAL, []),
    "a window that fits": ([png(_up_to(4000))] * 2, Tones(16, (0, 4000), "keep"), []),
    "a window far above": ([png(_up_to(4000))] * 2, Tones(16, (3000, 9000), "keep"), ["4,000", "9,000"]),
    "signed": ([tiff((_up_to(500).astype(int) - 100).astype(np.int16))] * 2, NEUTRAL, ["data.gray-window=-100,400"]),
    "signed beside unsigned": (
        [tiff((_up_to(500).astype(int) - 100).astype(np.int16)), png(_up_to(300))],
        NEUTRAL,
        ["largest value is 400", "data.gray-window=-100,400"],
    ),
    "a tag of 12 bits": ([tiff(_up_to(4000), bits=12)] * 2, NEUTRAL, []),
    "all black": ([png(np.zeros((9, 9))), png(np.zeros((9, 8)))], NEUTRAL, ["largest value is 0", "65,535"]),
}


@pytest.mark.parametrize("case", sorted(UNUSED))
def test_an_empty_upper_quarter_is_said_with_the_setting_that_fits(scan_of: Callable[..., Scan], case: str) -> None:
    files, tones, said = UNUSED[case]
    scan = scan_of(*files)

    warning = unused_range(scan, np.ones(len(files), dtype=bool), tones)

    assert bool(warning) == bool(said)
    assert all(part in warning for part in said), warning
    assert unused_range(scan, np.zeros(len(files), dtype=bool), tones) == ""


def test_warnings_are_about_the_clients_whose_images_are_all_dark(scan_of: Callable[..., Scan]) -> None:
    scan = scan_of(png(_up_to(4000)), png(_up_to(4001)), png(_up_to(60_000)), png(_up_to(4002)))

    # In the order of the rows: classes come one after the other.
    bright = int(np.argmax(scan.highs))
    alone, shared = np.arange(4, dtype=np.int32), np.zeros(4, dtype=np.int32)

    (warning,) = unused_ranges(scan, alone, NEUTRAL)
    assert warning.startswith("3 of 4 clients: The upper quarter of the range of values is empty in all 3 images")
    assert unused_ranges(scan, shared, NEUTRAL) == []
    (warning,) = unused_ranges(scan, np.where(np.arange(4) == bright, -1, 0), NEUTRAL)
    assert warning.startswith("The upper quarter")


def test_ranges_are_apart_by_depth_and_sign(scan_of: Callable[..., Scan]) -> None:
    signed = tiff((_up_to(500).astype(int) - 100).astype(np.int16))
    scan = scan_of(
        signed, png(_up_to(4000)), saved(Image.fromarray(_up_to(200).astype(np.uint8)), "PNG"), png(_up_to(9))
    )

    assert [tuple(row.values()) for row in value_ranges(scan)] == [
        (8, False, 1, 0, 200),
        (16, False, 2, 0, 4000),
        (16, True, 1, -100, 400),
    ]


def test_inspect_shows_ranges_constant_images_and_black_below_transparency(
    scan_of: Callable[..., Scan], tmp_path: Path, make_config: MakeConfig
) -> None:
    scan_of(png(_up_to(4000)), png(np.full((9, 9), 7)), saved(_holes(0), "PNG"), saved(_holes(9), "PNG"))
    found = inspect_source(
        open_source(make_config({"data.source": str(tmp_path / "scans")}).data), no_progress, NEUTRAL
    )
    stream = io.StringIO()
    show_facts(found, Console(file=stream, width=200))

    shown = stream.getvalue()
    assert "Values   16 bits: 0 to 4,000 in 2 images; 12 bits are used (data.bit-depth=12)" in shown
    assert "Values   8 bits: 0 to 200 in 2 images\n" in shown
    assert "Images of one value everywhere: 1\n  b/1.png" in shown
    assert "Images with transparent pixels: 2, black below them: 1 (" in shown
    assert found["constant"] == ["b/1.png"]
    assert (found["transparent"], found["black_below_transparency"]) == (2, ["a/2.png"])


def test_a_scan_reads_the_facts_back(scan_of: Callable[..., Scan], tmp_path: Path) -> None:
    first, again = scan_of(*(content for content, _ in FACTS.values())), scan_of()
    assert first.usable.all()

    names: Any = ("depths", "lows", "highs", "constant", "transparency", "plain")
    for name in names:
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
