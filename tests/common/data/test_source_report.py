"""`bract data inspect`: facts worked out by hand, and duplicates that are really there.

Drives `common.commands.inspect_source`, `common.data.duplicates`, `common.data.source_plot`,
`common.system.progress`.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from rich.console import Console
from typer.testing import CliRunner

from bract import app
from common.config.schema import RunConfig
from common.data.duplicates import Sketches, find_equal, find_near
from common.data.scan import scan_source
from common.data.source_plot import MAX_CLASSES, draw_source
from common.data.source_report import inspect_source, show_facts
from common.data.sources.registry import open_source
from common.data.tones.rendering import Tones
from common.system.progress import no_progress
from tests.support.data.divided_table import write_divided
from tests.support.data.hostile_files import encode

NEUTRAL = Tones(16, None, "keep")
Inspect = Callable[..., dict[str, Any]]


def _photo(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Smooth colours with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size)
    for cells in (3, 6, 12):
        layer = Image.fromarray(rng.integers(256, size=(cells, cells, 3), dtype=np.uint8))
        image = Image.blend(image, layer.resize(size, Image.Resampling.BICUBIC), 0.6 if cells == 3 else 0.3)
    return image


def _put(file: Path, image: Image.Image, kind: str = "PNG", **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(image, kind, **options))


def test_inspection_shows_its_holder_the_subgroups_and_names_a_missing_column(tmp_path: Path) -> None:
    table = str(write_divided(tmp_path / "scans", 10))
    by = ["--set", "data.subgroups=f,m", "--set"]

    found = CliRunner().invoke(app, ["data", "inspect", table, "--json", *by, "data.subgroup-column=sex"])
    shown = CliRunner().invoke(app, ["data", "inspect", table, *by, "data.subgroup-column=sex"])
    missing = CliRunner().invoke(app, ["data", "inspect", table, *by, "data.subgroup-column=scanner"])

    counts = {"f": {"train": 2, "test": 0}, "m": {"train": 4, "test": 0}, "other": {"train": 4, "test": 0}}
    assert json.loads(found.stdout)["subgroups"] == counts
    assert "Subgroups f 2, m 4, other 4 (seen here only)" in shown.stdout
    assert missing.exit_code != 0
    assert "lacks the column scanner" in missing.output


@pytest.fixture
def inspect(make_config: Callable[..., RunConfig]) -> Inspect:
    """Inspect a folder."""

    def inspected(root: Path, classes: str = "") -> dict[str, Any]:
        config = make_config({"data.source": str(root), "data.classes": classes}).data
        return inspect_source(open_source(config), no_progress, NEUTRAL)

    return inspected


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Train and test, with a copy, a re-encoded picture and a damaged file."""
    root = tmp_path / "pets"
    for number in range(6):
        _put(root / "train" / ("cat", "dog")[number % 2] / f"{number}.png", _photo(number))
    _put(root / "test" / "cat" / "new.png", _photo(10, (40, 30)).convert("L"))
    _put(root / "test" / "dog" / "copy.bmp", _photo(0), "BMP")
    _put(root / "test" / "dog" / "again.jpg", _photo(3).resize((60, 50)), "JPEG", quality=60)
    (root / "train" / "dog" / "bad.png").write_bytes(b"")
    return root


def test_inspect_counts_what_is_there(inspect: Inspect, pets: Path) -> None:
    facts = inspect(pets)

    assert (facts["entries"], facts["usable"], facts["train"], facts["test"]) == (10, 9, 7, 3)
    assert facts["classes"] == [
        {"name": "cat", "train": 3, "test": 1},
        {"name": "dog", "train": 3, "test": 2},
    ]
    assert facts["widths"] == {"min": 40, "median": 96, "max": 96}
    assert facts["heights"] == {"min": 30, "median": 80, "max": 80}
    assert facts["formats"] == {"PNG": 7, "BMP": 1, "JPEG": 1}
    assert facts["channels"] == {"1": 1, "3": 8}
    assert facts["bad"] == [{"place": "train/dog/bad.png", "reason": "empty file"}]
    assert (facts["units"], facts["clients"], facts["missing_classes"]) == (None, None, [])


def test_inspect_finds_copies_and_near_duplicates_across_train_and_test(inspect: Inspect, pets: Path) -> None:
    facts = inspect(pets)

    assert facts["duplicates"] == [
        {
            "places": ["train/cat/0.png", "test/dog/copy.bmp"],
            "across_train_and_test": True,
            "labels_differ": True,
        }
    ]
    assert [pair["places"] for pair in facts["near_duplicates"]] == [["test/dog/again.jpg", "train/dog/3.png"]]
    assert facts["near_duplicates_between"] == "train and test"


def test_inspect_says_the_same_when_the_scan_is_known(inspect: Inspect, pets: Path) -> None:
    assert inspect(pets) == inspect(pets)


def test_inspect_names_classes_that_are_missing_or_unknown(inspect: Inspect, pets: Path) -> None:
    facts = inspect(pets, "cat,yak")

    assert facts["missing_classes"] == ["yak"]
    assert [row["name"] for row in facts["classes"]] == ["cat", "yak"]
    assert sum("unknown class 'dog'" in fault["reason"] for fault in facts["bad"]) == 6


def test_inspect_looks_among_all_images_when_there_is_no_test_part(inspect: Inspect, tmp_path: Path) -> None:
    for number in range(4):
        _put(tmp_path / "ab"[number % 2] / f"{number}.png", _photo(number))
    _put(tmp_path / "a" / "x.jpg", _photo(1), "JPEG", quality=70)

    facts = inspect(tmp_path)

    assert facts["near_duplicates_between"] == "all images"
    assert [sorted(pair["places"]) for pair in facts["near_duplicates"]] == [["a/x.jpg", "b/1.png"]]


def _near(images: list[Image.Image]) -> list[tuple[int, int, float]]:
    sketches = Sketches.empty(len(images))
    for row, image in enumerate(images):
        sketches.note(row, image)
    return find_near(sketches, np.arange(len(images)), None)


@pytest.mark.parametrize("change", ["scaled", "encoded", "brighter", "contrast", "gray-edge"])
def test_find_near_knows_a_picture_again_after(change: str) -> None:
    image = _photo(5, (200, 160))
    other = {
        "scaled": image.resize((75, 60)),
        "encoded": Image.open(io.BytesIO(encode(image, "JPEG", quality=30))),
        "brighter": ImageEnhance.Brightness(image).enhance(0.8),
        "contrast": ImageEnhance.Contrast(image).enhance(0.7),
        "gray-edge": image.crop((1, 1, 199, 159)),
    }[change]

    assert [pair[:2] for pair in _near([_photo(4), image, _photo(6), other])] == [(3, 1)]


def test_find_near_has_no_false_alarm_among_different_pictures() -> None:
    assert _near([_photo(seed) for seed in range(300)]) == []


def test_find_near_leaves_flat_images_out() -> None:
    flat = [Image.new("RGB", (30, 30), (shade, shade, 255 - shade)) for shade in range(0, 250, 10)]
    grainy = [
        Image.fromarray(np.random.default_rng(seed).integers(100, 104, size=(30, 30), dtype=np.uint8))
        for seed in range(10)
    ]

    ramp = np.tile(np.arange(30, dtype=np.uint8) // 3, (30, 1))  # a slight vignette on two plain walls
    vignettes = [Image.fromarray(ramp + shade) for shade in (20, 200)]

    assert _near(flat + grainy + vignettes) == []


def test_find_near_tells_pictures_of_one_hash_apart_by_colour() -> None:
    red, blue = Image.new("RGB", (18, 16)), Image.new("RGB", (18, 16))
    for column in range(18):
        red.paste((column * 14, 0, 0), (column, 0, column + 1, 16))
        blue.paste((0, 0, column * 14), (column, 0, column + 1, 16))

    assert _near([red, blue]) == []
    assert len(_near([red, red.resize((90, 80))])) == 1


def test_find_near_gives_each_pair_once_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.duplicates._BLOCK", 3)
    images = [_photo(seed) for seed in range(7)]

    assert [pair[:2] for pair in _near([*images, images[2]])] == [(7, 2)]


def test_find_equal_groups_rows_of_one_digest() -> None:
    digests = np.zeros((7, 32), np.uint8)
    digests[:, 0] = [5, 1, 5, 2, 1, 5, 9]

    assert find_equal(digests, np.arange(7)) == [[0, 2, 5], [1, 4]]
    assert find_equal(digests, np.array([1, 2, 3, 5])) == [[2, 5]]
    assert find_equal(digests, np.array([], dtype=int)) == []


def test_draw_source_writes_a_legible_picture_of_many_classes(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    root = tmp_path / "many"
    for number in range(MAX_CLASSES + 3):
        _put(root / f"class {number} $of$ many with a long name" / "1.png", _photo(number, (12, 30)))
    source = open_source(make_config({"data.source": str(root)}).data)
    facts = inspect_source(source, no_progress, NEUTRAL)

    draw_source(tmp_path / "many.png", source, scan_source(source, progress=no_progress), facts, tones=NEUTRAL)

    drawn = Image.open(tmp_path / "many.png")
    assert 800 <= drawn.size[0] <= 2000
    assert drawn.size[1] <= 3000
    assert len(np.unique(np.asarray(drawn.convert("L")))) > 50


def test_draw_source_draws_a_class_without_images(make_config: Callable[..., RunConfig], pets: Path) -> None:
    source = open_source(make_config({"data.source": str(pets), "data.classes": "yak,cat"}).data)
    facts = inspect_source(source, no_progress, NEUTRAL)

    draw_source(pets / "x.png", source, scan_source(source, progress=no_progress), facts, tones=NEUTRAL)

    assert (pets / "x.png").is_file()


def test_show_facts_does_not_pass_on_terminal_codes(inspect: Inspect, pets: Path) -> None:
    (pets / "train" / "cat" / "\x1b[31mred[bold].png").write_bytes(b"")
    console = Console(file=io.StringIO(), width=80)

    show_facts(inspect(pets), console)

    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in said
    assert "red[bold].png: empty file" in said


def test_inspect_command_refuses_a_picture_it_could_not_write(pets: Path) -> None:
    for out in (pets / "x.pdf", pets / "nowhere" / "x.png"):
        done = CliRunner().invoke(app, ["data", "inspect", str(pets), "--out", str(out)])

        assert done.exit_code == 2
        assert "ending in .png" in done.stderr


def test_inspect_command_shows_one_screen_for_a_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "gone")])

    assert done.exit_code == 2
    assert "there is no such folder" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.output


def test_inspect_command_takes_any_source_and_settings() -> None:
    done = CliRunner().invoke(app, ["data", "inspect", "digits", "--json", "--set", "data.classes=1,0"])

    facts = json.loads(done.stdout)
    assert facts["classes"] == [{"name": "1", "train": 182, "test": 0}, {"name": "0", "train": 178, "test": 0}]


@pytest.mark.parametrize(
    ("suffix", "pages", "said"),
    [("tif", 3, True), ("gif", 2, True), ("webp", 2, True), ("tif", 1, False), ("png", 1, False)],
)
def test_files_of_several_pages_are_named(
    make_config: Callable[..., RunConfig], tmp_path: Path, suffix: str, pages: int, said: bool
) -> None:
    shades = [Image.new("L", (8, 8), 40 * shade) for shade in range(pages)]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        shades[0].save(tmp_path / name / f"1.{suffix}", save_all=pages > 1, append_images=shades[1:])

    source = open_source(make_config({"data.source": str(tmp_path)}).data)
    facts = inspect_source(source, no_progress, Tones(16, None, "keep"))

    found = [{"place": f"{name}/1.{suffix}", "pages": pages} for name in ("cat", "dog")]
    assert facts["several_pages"] == (found if said else [])
