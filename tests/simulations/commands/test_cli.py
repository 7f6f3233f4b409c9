"""The command line: mistakes end in one screen and exit code 2, and leave nothing behind.

Drives `common.system.console`, `server.reporting.terminal_progress`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bract import app
from common.data.preprocessing import Prepared

RUNNER = CliRunner()


def simulate(*arguments: str) -> Result:
    return RUNNER.invoke(app, ["simulate", *arguments], env={"COLUMNS": "200"})


def folder_of_images(root: Path, classes: int) -> Path:
    for name in range(classes):
        (root / f"class{name}").mkdir(parents=True)
        for row in range(3):
            pixels = np.full((8, 8), 40 * name + row, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{name}" / f"{row}.png")
    return root


@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("data.alhpa=1", ["data.alhpa", "did you mean 'data.alpha'"]),
        ("alpha=0.5", ["did you mean 'data.alpha'"]),
        ("num-rounds=five", ["num-rounds", "integer", "'five'"]),
        ("num-clients=5000", ["num-clients=5000", "1797"]),
        ("training.batch-size=5000", ["training.batch-size=5000", "1797"]),
        ("privacy.target-epsilon=0", ["privacy.target-epsilon", "greater than 0"]),
        ("privacy.target-epsilon=-3", ["privacy.target-epsilon", "-3"]),
        ("privacy.delta=0.5", ["privacy.delta=0.5"]),
        ("data.source=/no/such/folder", ["/no/such/folder", "no such folder"]),
        ("data.source=mnits", ["mnits", "digits"]),
        ("model.weights=/no/weights.pth", ["model.weights", "/no/weights.pth"]),
        ("strategy.name=Krumm", ["strategy.name", "Krum"]),
        ("noequals", ["key=value"]),
    ],
)
def test_simulate_explains_a_bad_setting_and_writes_nothing(
    setting: str, fragments: list[str], tmp_path: Path, digits: Prepared
) -> None:
    out = tmp_path / "run"

    result = simulate("--set", setting, "--out", str(out))

    assert result.exit_code == 2
    assert all(fragment in result.output for fragment in fragments), result.output
    assert "Traceback" not in result.output
    assert not out.exists()


def test_simulate_refuses_folders_without_images_or_with_one_class(tmp_path: Path) -> None:
    empty, one = tmp_path / "empty", folder_of_images(tmp_path / "one", 1)
    empty.mkdir()

    for folder, fragment in ((empty, "no images found"), (one, "at least two")):
        result = simulate("--set", f"data.source={folder}", "--set", "model.backbone=cnn")
        assert (result.exit_code, fragment in result.output) == (2, True), result.output


def test_simulate_refuses_an_output_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    result = simulate("--out", str(tmp_path))

    assert (result.exit_code, "in use" in result.output) == (2, True)


def test_simulate_reads_a_config_file_and_lets_set_win(tmp_path: Path, digits: Prepared) -> None:
    file = tmp_path / "run.toml"
    file.write_text("num-rounds = 9\n[privacy]\nmechanism = 'none'\n")

    result = simulate("--config", str(file), "--set", "num-rounds=2", "--dry-run", "--json")

    facts = json.loads(result.stdout)
    assert facts["config"]["num-rounds"] == 2
    assert facts["plan"] is None


def test_simulate_dry_run_shows_settings_plan_and_writes_nothing(
    tmp_path: Path, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = simulate("--dry-run")

    assert result.exit_code == 0
    assert all(word in result.output for word in ("privacy.target-epsilon", "noise multiplier", "Disk", "Time"))
    assert not list(tmp_path.iterdir())


def test_simulate_json_prints_the_summary_and_nothing_else(tmp_path: Path, digits: Prepared) -> None:
    result = simulate("--json", "--set", "num-rounds=1", "--out", str(tmp_path / "run"))

    assert json.loads(result.stdout)["rounds"] == 1


def test_simulate_on_a_folder_of_images_runs_to_the_end(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images", 3)
    arguments = [
        f"data.source={folder}",
        "model.backbone=cnn",
        "num-clients=2",
        "num-rounds=1",
        "training.batch-size=4",
    ]

    result = simulate(*[part for value in arguments for part in ("--set", value)], "--out", str(tmp_path / "run"))

    assert result.exit_code == 0, result.output
    assert "Run complete" in result.output


def test_help_teaches_with_examples() -> None:
    assert "Examples" in simulate("--help").output
    assert RUNNER.invoke(app, ["--version"]).output.startswith("bract 0.")


def test_simulate_lets_set_unset_the_rival_in_a_config_file(tmp_path: Path, digits: Prepared) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[privacy]\ntarget-epsilon = 4.0\n")

    result = simulate("--config", str(file), "--set", "privacy.noise-multiplier=3", "--dry-run", "--json")

    config = json.loads(result.stdout)["config"]
    assert (config["privacy.noise-multiplier"], config["privacy.target-epsilon"]) == (3.0, "")


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["FOLDER"], "FOLDER"),
        (["digits"], "digits"),
        (["FOLDER/scans.csv", "--set", "data.path=FOLDER"], "FOLDER/scans.csv"),
        (["."], "FOLDER"),
        (["--config", "FOLDER/run.toml", "FOLDER"], "FOLDER"),
        ([], "digits"),
    ],
)
def test_simulate_takes_a_source_as_its_argument(
    arguments: list[str], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Prepared
) -> None:
    folder = folder_of_images(tmp_path / "images", 2)
    rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    (folder / "scans.csv").write_text("\n".join(["path,label", *rows]))
    (folder / "run.toml").write_text("[data]\nsource = 'mnist'\n")
    monkeypatch.chdir(folder)
    given = [word.replace("FOLDER", str(folder)) for word in arguments]
    own = ["--set", "model.backbone=cnn", "--set", "data.image-size=8", "--out", str(tmp_path / "run")]

    result = simulate(*given, "--dry-run", "--json", *own)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["config"]["data.source"] == source.replace("FOLDER", str(folder))


@pytest.mark.parametrize("arguments", [["digits", "--set", "data.source=mnist"], ["mnits"], ["/no/such/folder"]])
def test_simulate_refuses_a_source_that_is_named_twice_or_not_there(arguments: list[str]) -> None:
    result = simulate(*arguments)

    assert (result.exit_code, "Traceback" in result.output) == (2, False), result.output


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("simulations.simulate._in_process", "there are no results"),
        ("server.federation.enroll_clients", "--resume RUN goes on"),
        ("simulations.baselines.train_baselines", "the run itself is complete: RUN"),
    ],
)
def test_simulate_that_is_stopped_outside_its_rounds_says_what_is_left(
    fails: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Prepared
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fails, stop)

    result = simulate("--baselines", "--set", "num-rounds=1", "--out", str(tmp_path / "run"))

    assert (result.exit_code, left.replace("RUN", str(tmp_path / "run")) in result.output) == (130, True), result.output
    assert (tmp_path / "run").exists() == ("RUN" in left)
