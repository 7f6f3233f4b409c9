"""A resumed simulation names the images that changed, and finds its data where they are now.

Drives `server.state.resume`.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bract import app
from common.commands.run_settings import settings_for_resume
from common.config.sections import DataConfig
from common.data.folders.unread import HELD_OUT
from common.errors import ConfigError, DataError
from server import federation
from server.state import resume
from simulations.image_record import FILE, ImageRecord, refuse_changed_images
from tests.support.data.sources import write_png

SETTINGS = (
    *("num-clients=2", "num-rounds=2", "model.backbone=cnn", "data.image-size=8", "privacy.mechanism=none"),
    "data.max-bad-fraction=0.5",
)


def bract(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments, "-q"], env={"COLUMNS": "200"})


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over photos/ that was stopped after its first round."""
    for number in range(8):
        write_png(tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png", 20 * number, side=8)
    genuine = federation.run_rounds

    def interrupted(*arguments: object, **more: object) -> object:
        for result in genuine(*arguments, **more):  # type: ignore[arg-type]
            yield result
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(federation, "run_rounds", interrupted)
        settings = [word for pair in SETTINGS for word in ("--set", pair)]
        done = bract(str(tmp_path / "photos"), "--out", str(tmp_path / "run"), *settings)
    assert done.exit_code == 130, done.output
    assert (tmp_path / "run" / FILE).stat().st_mode & 0o777 == 0o600
    return tmp_path


def replace(photos: Path) -> None:
    write_png(photos / "cat" / "1.png", 99, side=8)


def relabel(photos: Path) -> None:
    (photos / "cat" / "1.png").rename(photos / "dog" / "1.png")


def add(photos: Path) -> None:
    write_png(photos / "cat" / "new.png", 99, side=8)


def remove(photos: Path) -> None:
    (photos / "cat" / "1.png").unlink()


def damage(photos: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"")


def swap(photos: Path) -> None:
    one, two, away = (photos / "cat" / name for name in ("1.png", "3.png", "x"))
    one.rename(away)
    two.rename(one)
    away.rename(two)


def remove_all_but_one(photos: Path) -> None:
    for number in range(1, 8):
        (photos / ("cat" if number % 2 else "dog") / f"{number}.png").unlink()
    write_png(photos / "cat" / "y.png", 3, side=8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace, ["other pixels: cat/1.png"]),
        (relabel, ["missing: cat/1.png", "new: dog/1.png"]),
        (add, ["new: cat/new.png"]),
        (remove, ["missing: cat/1.png"]),
        (damage, ["cannot be used any more: cat/1.png"]),
        (swap, ["other pixels: cat/1.png", "other pixels: cat/3.png"]),
        (remove_all_but_one, ["missing: cat/1.png", "missing: dog/6.png", "new: cat/y.png"]),
    ],
)
def test_resume_names_the_images_that_changed(stopped: Path, change: Callable[[Path], None], said: list[str]) -> None:
    change(stopped / "photos")
    before = (stopped / "run" / "checkpoint.safetensors").read_bytes()

    done = bract("--resume", str(stopped / "run"))

    assert done.exit_code == 2, done.output
    assert all(line in done.output for line in said), done.output
    assert (stopped / "run" / "checkpoint.safetensors").read_bytes() == before


def touch(photos: Path) -> list[str]:
    (photos / "cat" / "1.png").touch()
    return []


def recompress(photos: Path) -> list[str]:
    with Image.open(photos / "cat" / "1.png") as image:
        image.load()
    image.save(photos / "cat" / "1.png", compress_level=0)
    return []


def move(photos: Path) -> list[str]:
    photos.rename(photos.parent / "elsewhere")
    return ["--set", f"data.source={photos.parent / 'elsewhere'}"]


def copy(photos: Path) -> list[str]:
    shutil.copytree(photos, photos.parent / "copy")
    return ["--set", f"data.source={photos.parent / 'copy'}"]


def link(photos: Path) -> list[str]:
    (photos.parent / "link").symlink_to(photos)
    return [str(photos.parent / "link")]


@pytest.mark.parametrize("change", [touch, recompress, move, copy, link])
def test_resume_goes_on_with_the_same_images_wherever_they_are(
    stopped: Path, change: Callable[[Path], list[str]]
) -> None:
    moved = change(stopped / "photos")

    done = bract(*moved, "--resume", str(stopped / "run"))

    assert done.exit_code == 0, done.output
    # A second process finds the run complete under the first place as well as under the new one.
    assert "complete" in bract(*moved, "--resume", str(stopped / "run")).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "num-rounds=9"], "only data that moved are named"),
        (["--seed", "1"], "only data that moved are named"),
        (["--set", "data.source=digits"], "images are not as they were"),
        (["--set", "data.source=/no/such/place"], "data.source='/no/such/place' is not there any more"),
    ],
)
def test_resume_takes_no_other_setting_and_no_other_data(stopped: Path, arguments: list[str], said: str) -> None:
    done = bract("--resume", str(stopped / "run"), *arguments)

    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("has_record", "said"),
    [(True, "add --set data.source=/new/place"), (False, "put the data back, as the run has no")],
)
def test_resume_of_data_that_moved_says_what_helps(stopped: Path, has_record: bool, said: str) -> None:
    (stopped / "photos").rename(stopped / "elsewhere")
    if not has_record:
        (stopped / "run" / FILE).unlink()

    done = bract("--resume", str(stopped / "run"))

    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("setting", "own_images", "said"),
    [
        ("source", True, "is a simulation over data.source='/gone/photos': resume it with `bract simulate --resume"),
        ("source", False, "data.source='/gone/photos' is not there any more"),
        ("path", False, "data.path='/gone/photos' is not there any more; if the data moved, add --set data.path="),
    ],
)
def test_resume_names_the_command_or_the_setting_that_helps(
    tmp_path: Path, setting: str, own_images: bool, said: str
) -> None:
    place = {"source": "/gone/photos"} if setting == "source" else {"source": "cifar10", "path": "/gone/photos"}
    (tmp_path / "config.toml").write_text("[data]\n" + "".join(f'{key} = "{value}"\n' for key, value in place.items()))

    with pytest.raises(ConfigError, match=re.escape(said)):
        settings_for_resume(tmp_path, None, [], None, own_images=own_images)


def test_a_run_of_before_the_record_is_resumed_where_it_was_and_nowhere_else(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stopped / "run" / FILE).unlink()
    shutil.copytree(stopped / "photos", stopped / "copy")

    moved = bract("--resume", str(stopped / "run"), "--set", f"data.source={stopped / 'copy'}")
    here = bract("--resume", str(stopped / "run"))

    assert (moved.exit_code, "no record of its images" in moved.output) == (2, True), moved.output
    assert here.exit_code == 0, here.output


LEFT_OUT = ("the part dev" + HELD_OUT + " (data.validation=train or test uses it)",)


@pytest.mark.parametrize(
    ("before", "now", "not_read", "files", "explained"),
    [
        (5, 3, LEFT_OUT, "", True),
        (None, 3, LEFT_OUT, "checkpoint.safetensors", True),
        (None, 3, LEFT_OUT, "", False),
        (3, 3, LEFT_OUT, "checkpoint.safetensors", False),
        (None, 3, (), "checkpoint.safetensors", False),
        (None, 3, ("val/, 2 images" + HELD_OUT,), "checkpoint.safetensors", False),
    ],
    ids=["record", "no record", "not begun", "today's run", "nothing left out", "a folder's part"],
)
def test_a_run_that_was_tested_on_a_part_that_is_left_out_now_is_refused_with_the_reason(
    tmp_path: Path, before: int | None, now: int, not_read: tuple[str, ...], files: str, explained: bool
) -> None:
    def record(rows: int) -> ImageRecord:
        return ImageRecord(tuple(map(str, range(rows))), ("x",) * rows, np.ones((rows, 16), np.uint8))

    data = DataConfig.model_construct(source="/data/pets")
    (tmp_path / "config.toml").write_text('[data]\nsource = "/data/pets"\n')
    if before is not None:
        record(before).save(tmp_path)
    for name in files.split():
        (tmp_path / name).touch()

    if explained:
        with pytest.raises(DataError, match=r"(?s)the part dev.*finish the run with the version that began it"):
            refuse_changed_images(tmp_path, data, record(now), not_read)
    else:
        refuse_changed_images(tmp_path, data, record(now), not_read)


def test_a_checkpoint_of_before_names_its_place_in_its_digest(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[data]\nsource = "/old"\npath = ""\n')
    old = resume._digest({"data.source": "/old", "data.path": "", "seed": 1}, with_place=True)

    assert resume._digest_with_place(tmp_path, {"data.source": "/new", "data.path": "", "seed": 1}) == old
    assert resume._digest_with_place(tmp_path, {"data.source": "/new", "data.path": "", "seed": 2}) != old
    assert resume._digest({"data.source": "/new", "seed": 1}) == resume._digest({"data.source": "/old", "seed": 1})


def test_a_record_keeps_names_of_any_kind(tmp_path: Path, stopped: Path) -> None:
    record = ImageRecord.load(stopped / "run")
    odd = ImageRecord(("a\udcff.png", "", "雪.png"), ("x", "", "y"), record.pixels[:3]) if record else None

    assert odd is not None
    odd.save(tmp_path)
    found = ImageRecord.load(tmp_path)
    assert found is not None
    assert (found.names, found.classes, found.pixels.tolist()) == (odd.names, odd.classes, odd.pixels.tolist())
    assert list(found.changes_since(odd)) == []
