"""Bract is used from Python as from the command line, and importing it is cheap.

Drives `bract`, `common.inference.run_folder`.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bract
from common.config.loading import load_file
from tests.support.inference.stored_models import CLASSES, shaded_images
from tests.support.paths import ROOT

SETTINGS = {
    "num-rounds": 2,
    "num-clients": 2,
    "model.backbone": "cnn",
    "data": {"image-size": 16},
    "privacy": {"mechanism": "none"},
}


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=10)


@pytest.fixture(name="run", scope="module")
def run_fixture(images: Path, tmp_path_factory: pytest.TempPathFactory) -> bract.Run:
    out = tmp_path_factory.mktemp("runs") / "first"
    return bract.simulate(SETTINGS | {"data.source": str(images)}, out=out, quiet=True)


def test_a_simulation_returns_its_run(run: bract.Run, images: Path) -> None:
    settings = load_file(run.path / "config.toml")

    assert (settings["num-rounds"], settings["data.source"], settings["data.image-size"]) == (2, str(images), 16)
    assert run.path.name == "first"
    assert run.summary == json.loads((run.path / "summary.json").read_text())
    assert run.privacy == json.loads((run.path / "privacy.json").read_text())
    assert run.summary["status"] == "complete"


def test_rounds_are_a_table(run: bract.Run) -> None:
    lines = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]

    assert run.rounds["round"].tolist() == [1, 2]
    assert run.rounds["accuracy"].tolist() == [line["accuracy"] for line in lines]


def test_the_model_of_a_run_classifies_images(run: bract.Run, images: Path) -> None:
    files = sorted(images.rglob("*.png"))

    shares = run.model.predict_proba(files)

    assert run.model.classes == CLASSES
    assert shares.shape == (30, 3)
    assert np.array_equal(shares, bract.load_model(run.path / "model").predict_proba(files))
    assert isinstance(run.model.module, torch.nn.Module)
    assert run.model.features(files[:2]).shape == (2, 64)
    assert {*run.model.predict(files)} <= {*CLASSES}


def test_an_open_run_reads_the_same(run: bract.Run) -> None:
    again = bract.open_run(run.path)

    assert again.summary == run.summary
    assert again.rounds.equals(run.rounds)
    assert str(run.path) in repr(again)


def test_a_simulation_shows_its_progress(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    run = bract.simulate(SETTINGS | {"data.source": str(images), "num-rounds": 1})

    assert "round   1/1" in capsys.readouterr().out
    assert run.path.parent == tmp_path / "runs"


def test_settings_may_be_lists_of_classes_and_paths(images: Path, tmp_path: Path) -> None:
    given = SETTINGS | {"data.source": images, "data.classes": [*CLASSES], "output-dir": tmp_path / "run"}

    run = bract.simulate(given | {"num-rounds": 1}, quiet=True)

    assert (run.path, run.model.classes) == (tmp_path / "run", CLASSES)


@pytest.mark.parametrize(
    ("settings", "out", "fragment"),
    [
        ({"num-ronds": 2}, None, "did you mean 'num-rounds'"),
        ({"num-rounds": [2]}, None, "num-rounds must be one number"),
        ({"num-rounds": None}, None, "num-rounds must be one number"),
        ({"output-dir": "a"}, "b", "twice"),
        ({"data.source": "/no/such/folder"}, None, "no such folder"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(
    settings: dict[str, object], out: str | None, fragment: str
) -> None:
    with pytest.raises(bract.BractError, match=fragment):
        bract.simulate(settings, out=out)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bract.BractError, match="does not hold a run"):
        bract.open_run(tmp_path)

    (tmp_path / "config.toml").touch()
    (tmp_path / "privacy.json").write_text("{")
    run = bract.open_run(tmp_path)
    assert run.rounds.empty
    for read, fragment in ((lambda: run.summary, "cannot be read"), (lambda: run.privacy, "is damaged")):
        with pytest.raises(bract.BractError, match=fragment):
            read()
    with pytest.raises(bract.BractError, match="does not hold a model"):
        _ = run.model


def test_importing_bract_imports_nothing_heavy() -> None:
    program = (
        "import sys, bract; print(len(sys.modules), sorted({'numpy', 'torch', 'typer', 'common'} & {*sys.modules}))"
    )

    found = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split(" ", 1)

    assert found[1].strip() == "[]"
    assert int(found[0]) < 200


def test_the_names_of_the_interface_are_all_there() -> None:
    assert {*bract.__all__} <= {*dir(bract)}
    assert all(getattr(bract, name) is not None for name in bract.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bract.no_such_name
