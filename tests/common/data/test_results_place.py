"""Results never lie among the images, and those that an earlier version left there are not read as images.

Drives `common.system.paths`.
"""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from bract import app
from common.config.loading import defaults, override, parse
from common.config.sections import DataConfig
from common.data.results_place import refuse_results_in_data
from common.data.sources.registry import open_source
from common.errors import ConfigError, DataError
from common.inference.inputs import name_images

INSIDE = "lies inside"


def data_config(source: str) -> DataConfig:
    return parse(override(defaults(), {"data.source": source})).data


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes beside the working folder."""
    for label in ("cat", "dog"):
        for number in range(3):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 * number + len(label)).save(file)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("cwd", "arguments"),
    [
        ("work", "simulate PHOTOS --out PHOTOS/run"),
        ("work", "simulate PHOTOS --out PHOTOS/cat/run"),
        ("work", "simulate PHOTOS --set output-dir=PHOTOS/a/b/c"),
        ("work", "simulate PHOTOS --set output-dir=../photos/run"),
        ("work", "simulate ../link --out PHOTOS/run"),
        ("work", "simulate PHOTOS --out ../link/run"),
        ("photos", "simulate ."),
        ("photos", "simulate PHOTOS --engine ray"),
        ("photos/cat", "simulate .."),
        ("photos", "simulate . --dry-run"),
        ("work", "data inspect PHOTOS --out PHOTOS/overview.png"),
        ("photos", "data inspect . --out cat/overview.png"),
        ("work", "data partition PHOTOS --clients 2 --out PHOTOS/parts"),
        ("work", "plan --set data.source=PHOTOS --set num-clients=2 --plot PHOTOS/plan.png"),
        ("work", "audit inversion --set data.source=PHOTOS --out PHOTOS/cat/i.png"),
        ("photos", "audit empirical --set data.source=."),
        ("work", "audit empirical --one-run --set data.source=PHOTOS --out PHOTOS/run"),
        ("photos", "audit membership --set data.source=PHOTOS --models 8"),
    ],
)
def test_commands_refuse_to_write_results_into_the_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch, cwd: str, arguments: str
) -> None:
    monkeypatch.chdir(photos.parent / cwd)
    before = sorted(photos.rglob("*"))

    done = CliRunner().invoke(app, arguments.replace("PHOTOS", str(photos)).split(), env={"COLUMNS": "200"})

    assert (done.exit_code, INSIDE in done.output) == (2, True), done.output
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("photos", "photos-2/run"),
        ("photos", "run"),
        ("photos/cat", "photos/dog/run"),
        # A manifest names its images: a study's folder may hold both.
        ("photos/scans.csv", "photos/runs/one"),
        # The name of a source, and a folder that is called like it.
        ("digits", "digits/run"),
    ],
)
def test_results_beside_the_images_are_not_refused(photos: Path, source: str, place: str) -> None:
    (photos / "scans.csv").write_text("path,label\n")
    (photos.parent / "digits").mkdir()
    given = source if source == "digits" else str(photos.parent / source)

    refuse_results_in_data(photos.parent / place, data_config(given))

    with pytest.raises(ConfigError, match="lies inside"):
        refuse_results_in_data(photos / "x", data_config(str(photos)))


@pytest.mark.parametrize(
    ("files", "extra"),
    [
        ("runs/one/config.toml runs/one/run-id.txt runs/one/confusion.png", 0),
        # A run of 0.1.0, which has no file of its id.
        ("old/config.toml old/privacy.json old/curves.png", 0),
        ("cat/run/config.toml cat/run/run-id.txt cat/run/model/x.png", 0),
        ("parts/partition.json parts/classes.txt parts/client-00000/train/cat/1.png parts/partition.png", 0),
        ("runs/m/membership.json runs/m/membership.png", 0),
        ("runs/e/empirical.json runs/e/empirical.png", 0),
        # Files of these names alone are no results.
        ("cow/config.toml cow/1.png", 1),
        ("cow/run-id.txt cow/1.png", 1),
        ("cow/runs/1.png", 1),
        ("runs/one/1.png", 1),
    ],
)
def test_a_folder_of_images_is_read_without_earlier_results(photos: Path, files: str, extra: int) -> None:
    for name in files.split():
        file = photos / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 250).save(file) if file.suffix == ".png" else file.write_text("{}")

    entries = open_source(data_config(str(photos))).entries

    assert len(entries.labels) == 6 + extra
    assert set(entries.classes) == {"cat", "dog"} | ({files.split("/", maxsplit=1)[0]} if extra else set())


def test_a_folder_of_results_is_named_as_such(tmp_path: Path) -> None:
    for file in ("partition.json", "classes.txt", "client-00000/train/cat/1.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()

    with pytest.raises(DataError, match="name one client's folder in it, such as client-00000"):
        open_source(parse(override(defaults(), {"data.source": str(tmp_path)})).data)
    with pytest.raises(DataError, match="is a folder of results that Bract wrote"):
        name_images([str(tmp_path)], [])
