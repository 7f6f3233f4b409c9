"""What a source leaves out is printed where a run begins, also where little is printed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bract
from common.config.loading import load_file
from common.config.schema import RunConfig
from common.data.preprocessing import prepare
from common.errors import ConfigError, DataError
from tests.support.clients.own_clients import write_images
from tests.support.data.folders import write_folder

FAST = ["--set", "model.backbone=cnn", "--set", "privacy.mechanism=none", "--set", "training.batch-size=4"]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(bract.app, list(arguments))
    return done.exit_code, done.output


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    images = write_images(tmp_path / "images", range(24))
    return write_folder(images, "loose.png notes.txt dim/")


NOT_READ = "Not read: 1 loose image outside the class folders (loose.png); files .txt 1; empty class folders: dim"


@pytest.mark.parametrize(
    ("option", "classes", "said"),
    [
        ("--dry-run", "", ""),
        ("--dry-run", "dark,bright", ""),
        ("--dry-run", "dark,bright,glow", "Classes: no image of glow"),
        ("--quiet", "dark,bright,glow", "Classes: no image of glow"),
    ],
)
def test_simulate_says_what_is_left_out(images: Path, tmp_path: Path, option: str, classes: str, said: str) -> None:
    short = ["--set", "num-rounds=1", "--set", "num-clients=2", "--set", "training.local-epochs=1"]
    given = [*FAST, *short, "--set", f"data.source={images}", "--set", f"data.classes={classes}"]

    code, output = run("simulate", option, "--out", str(tmp_path / "run"), *given)

    assert code == 0, output
    lines = output.splitlines()
    assert lines.count(NOT_READ) == 1
    assert [line for line in lines if line.startswith("Classes:")] == ([said] if said else [])


@pytest.mark.parametrize("option", ["--dry-run", "--quiet"])
@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("Dark,Bright", "of 0 classes"),
        ("Dark,bright", "of 1 class, bright"),
        ("0,1", "of 0 classes"),
    ],
)
def test_a_list_that_fits_no_image_is_refused_before_any_epsilon(
    images: Path, tmp_path: Path, option: str, classes: str, said: str
) -> None:
    given = ["--set", "data.image-size=8", "--set", "model.backbone=cnn", "--set", "training.batch-size=4"]

    code, output = run(
        "simulate",
        option,
        "--out",
        str(tmp_path / "run"),
        "--set",
        f"data.source={images}",
        "--set",
        f"data.classes={classes}",
        *given,
    )

    assert code == 2
    assert said in output
    assert "Classes: no image of" in output
    assert not (tmp_path / "run").exists()


def test_the_scan_refuses_what_a_dry_run_cannot_see(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    root = write_folder(tmp_path, "cat*4 dog*4")

    config = make_config({"data.source": str(root), "data.classes": "cat,dog", "data.max-bad-fraction": 1.0})

    with pytest.raises(DataError, match="of 0 classes"):
        prepare(config)


def test_inspect_says_what_is_not_read_as_text_and_as_json(images: Path) -> None:
    code, output = run("data", "inspect", str(images), "--class", "dark", "--class", "Bright")
    told = json.loads(CliRunner().invoke(bract.app, ["data", "inspect", str(images), "--json"]).stdout)

    assert code == 0
    assert output.splitlines().count(NOT_READ) == 1
    assert "Classes: no image of Bright (nearest: bright)" in output
    assert [f"Not read: {'; '.join(told['not_read'])}"] == [NOT_READ]
    assert told["class_remarks"] == []


def test_a_class_with_a_comma_can_be_given_by_option_and_by_file(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", range(24))
    (images / "dark").rename(images / "dark, very")
    file = tmp_path / "study.toml"
    file.write_text('[data]\nclasses = ["bright", "dark, very"]\n')

    for option in (["--class", "bright", "--class", "dark, very"], ["--config", str(file)]):
        code, output = run(
            "simulate",
            "--dry-run",
            "--json",
            *FAST,
            "--set",
            f"data.source={images}",
            "--set",
            "num-clients=2",
            *option,
        )
        assert code == 0, output
        assert json.loads(output)["classes"] == ["bright", "dark, very"]


def test_class_and_set_cannot_name_one_list_twice(tmp_path: Path) -> None:
    code, output = run("simulate", "--dry-run", "--class", "a", "--class", "b", "--set", "data.classes=a,b")

    assert code == 2
    assert "--class and --set data.classes name one setting twice" in output


@pytest.mark.parametrize("text", ["[data]\nclasses = [1, 2]\n", "seed = [1]\n", 'data.source = ["a"]\n'])
def test_a_file_may_list_class_names_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.toml").write_text(text)

    with pytest.raises(ConfigError, match="must be one number, word or true/false"):
        load_file(tmp_path / "study.toml")
