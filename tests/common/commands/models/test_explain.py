"""`bract explain` draws pictures for their owner alone, and says if they depend on the model.

Drives `common.inference.explanation.sheet_tiles`.
"""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from bract import app
from common.inference.classifier import load_model
from common.inference.explanation import methods
from tests.support.data.hostile_files import BAD
from tests.support.inference.stored_models import CLASSES


def explain(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)], input=stdin, env={"COLUMNS": "200"})


def found_of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_each_image_has_a_picture_that_is_the_owners_alone(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    old = os.umask(0)
    try:
        result = explain(pet_run, pets / "cat", pets / "owl" / "0.png", "--sheet", pets, "--out", out, "--json")
    finally:
        os.umask(old)

    assert result.exit_code == 0, result.output
    found = found_of(result)
    files = [Path(row["picture"]) for row in found["images"]]
    assert [file.name for file in files] == ["00001-0.png", "00002-1.png", "00003-0.png"]
    assert sorted(out.iterdir()) == sorted([*files, out / "contact-sheet.png"])
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for file in out.iterdir():
        with Image.open(file) as image:
            image.verify()
    images = [row["image"] for row in found["images"]]
    assert [row["class"] for row in found["images"]] == load_model(pet_run).predict(images)


def test_another_class_is_explained_if_it_is_named(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    pictures = {}
    for name in CLASSES:
        result = explain(pet_run, pets / "cat" / "0.png", "--class", name, "--out", tmp_path / name, "--json")
        row = found_of(result)["images"][0]
        assert row["class"] == name
        pictures[name] = Path(row["picture"]).read_bytes()

    assert len(set(pictures.values())) > 1


def test_every_bad_image_is_in_its_row_and_the_others_are_explained(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name, (write, _) in BAD.items():
        write(mixed / name)
    (mixed / "good.png").write_bytes((pets / "cat" / "0.png").read_bytes())

    result = explain(pet_run, mixed, "--out", tmp_path / "pictures", "--json")

    assert result.exit_code == 3
    rows = {Path(row["image"]).name: row for row in found_of(result)["images"]}
    assert {name for name, row in rows.items() if not row["fault"]} == {"good.png"}
    assert all(reason in rows[name]["fault"] for name, (_, reason) in BAD.items())
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_a_sheet_lists_what_it_lacks(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(pets, mixed)
    (mixed / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")

    result = explain(pet_run, "--sheet", mixed, "--out", tmp_path / "pictures")

    assert result.exit_code == 3, result.output
    assert "cat/0.png: " in result.output
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["contact-sheet.png"]


def test_a_sound_model_passes_the_check_and_a_constant_map_fails_it(
    pet_run: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = explain(pet_run, pets, "--check", "--json")

    def constant(network: Any, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        # The brightness of the image itself, in the size of the network's maps.
        return torch.nn.functional.adaptive_avg_pool2d(inputs.mean(dim=1), 8).relu()

    monkeypatch.setitem(methods.METHODS, "grad-cam", constant)
    failed = explain(pet_run, pets, "--check")

    assert sound.exit_code == 0, sound.output
    check = found_of(sound)["check"]
    assert (check["images"], check["holds"]) == (6, True)
    assert failed.exit_code == 1, failed.output
    assert "do not depend on its head nor on its backbone" in failed.output.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["{run}", "{images}", "--out", "{run}/pictures"], "folder of a run or a model"),
        (["{run}", "{images}", "--out", "{run}/model/new/pictures"], "folder of a run or a model"),
        (["{run}", "{images}", "--out", "{tmp}/other/pictures"], "folder of a run or a model"),
        (["{run}", "{images}", "--out", "{tmp}/handed/deeper"], "folder of a run or a model"),
        (["{run}", "{images}", "--out", "{images}/cat/pictures"], "would be read as images"),
        (["{run}", "--sheet", "{images}", "--out", "{images}/pictures"], "would be read as images"),
        (["{run}", "{images}", "--out", "{tmp}/full"], "new or an empty folder"),
        (["{run}", "{images}", "--out", "{tmp}/full/file.png"], "new or an empty folder"),
        (["{run}", "{images}"], "--out FOLDER"),
        (["{run}", "--sheet", "{images}"], "--out FOLDER"),
        (["{run}", "--out", "{tmp}/new"], "nothing to explain"),
        (["{run}", "--sheet", "{images}", "--out", "{tmp}/new", "--check"], "--check is about images"),
        (["{run}", "--sheet", "{images}", "--out", "{tmp}/new", "--class", "owl"], "--class is about images"),
        (["{run}", "{images}", "--out", "{tmp}/new", "--class", "emu"], "no class 'emu'"),
        (["{run}", "{tmp}/void", "--out", "{tmp}/new"], "no images in"),
        (["{run}", "--sheet", "{tmp}/void", "--out", "{tmp}/new"], "no images found"),
        (["{tmp}/void", "{images}", "--out", "{tmp}/new"], "does not hold a model"),
        (["{run}", "{tmp}/gone.png", "--check"], "none of the images can be read"),
    ],
)
def test_a_mistake_ends_in_exit_code_2_and_writes_nothing(
    pet_run: Path, pets: Path, tmp_path: Path, arguments: list[str], fragment: str
) -> None:
    for name in ("other", "full", "void", "handed"):
        (tmp_path / name).mkdir()
    for name in ("config.toml", "run-id.txt"):
        (tmp_path / "other" / name).touch()
    (tmp_path / "handed" / "card.json").touch()
    (tmp_path / "full" / "file.png").touch()
    places = [*tmp_path.rglob("*"), *pet_run.rglob("*"), *pets.rglob("*")]

    result = explain(*(part.format(run=pet_run, images=pets, tmp=tmp_path) for part in arguments))

    assert (result.exit_code, result.stdout.strip()) == (2, "")
    assert fragment in result.stderr
    assert "Traceback" not in result.stderr
    assert [*tmp_path.rglob("*"), *pet_run.rglob("*"), *pets.rglob("*")] == places


def test_a_damaged_model_ends_in_one_line_and_leaves_no_folder(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    shutil.copytree(pet_run / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])

    result = explain(tmp_path / "model", pets, "--out", tmp_path / "pictures")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "pictures").exists()


def test_explaining_writes_nothing_beside_the_model(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in pet_run.rglob("*") if file.is_file()}

    before = state()

    result = explain(pet_run, "-", "--out", tmp_path / "a", "--check", stdin=f"{pets / 'cat'}\n")

    assert result.exit_code == 0, result.output
    assert "2 of 2 images explained by grad-cam" in result.stdout
    assert state() == before


def test_the_method_is_the_users_choice(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    heats = []
    for method in ("auto", "grad-cam", "integrated-gradients", "occlusion"):
        result = explain(pet_run, pets / "dog" / "0.png", "--method", method, "--out", tmp_path / method, "--json")
        found = found_of(result)
        assert found["method"] == ("grad-cam" if method == "auto" else method)
        with Image.open(found["images"][0]["picture"]) as image:
            heats.append(np.asarray(image))

    assert np.array_equal(heats[0], heats[1])
    assert len({heat.tobytes() for heat in heats}) == 3
