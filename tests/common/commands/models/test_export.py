"""`bract export` writes one file, and measures private images for nobody but the person who asked.

Drives `common.inference.export.accuracy`, `common.inference.export.pixel_batches`.
"""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bract import app
from common.inference.export import onnx_file
from common.system.extras import install_hint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.inference.export.comparison._SECONDS", 0.01)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200"})


def test_accuracy_before_and_after_is_shown_and_not_written(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    plain = export(pet_run, "--out", tmp_path / "a.onnx")
    tested = export(pet_run, "--out", tmp_path / "b.onnx", "--test", pets)

    assert plain.exit_code == 0, plain.output
    assert tested.exit_code == 0, tested.output
    assert "interval" not in plain.output
    rows = [line.split() for line in tested.output.splitlines() if line.startswith(("PyTorch", "onnx"))]
    assert [row[0] for row in rows] == ["PyTorch", "onnx"]
    assert rows[0][-2] == rows[1][-2]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_ranges_of_images_are_written_only_if_they_are_public(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    wanted = (pet_run, "--format", "onnx-int8", "--out", out)

    refused = [export(*wanted), export(*wanted, "--calibrate", pets), export(*wanted, "--public-data")]

    assert [result.exit_code for result in refused] == [2, 2, 2]
    assert "--public-data" in refused[1].output
    assert not list(tmp_path.iterdir())

    result = export(*wanted, "--calibrate", pets, "--public-data")

    assert result.exit_code == 0, result.output
    assert b"declared public" in out.read_bytes()
    assert "6 images of --calibrate" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "{tmp}/card.json"], ".onnx"),
        (["--out", "{tmp}/none/a.onnx"], "folder that exists"),
        (["--out", "{tmp}/a.onnx", "--format", "torch-export"], ".pt2"),
        (["--out", "{tmp}/a.onnx", "--calibrate", "{tmp}", "--public-data"], "goes with"),
        (["--out", "{tmp}/a.onnx", "--public-data"], "--public-data goes with"),
        (["--out", "{tmp}/a.onnx", "--reduce-range"], "--reduce-range goes with"),
        (["--out", "{tmp}/a.onnx", "--no-reduce-range"], "--no-reduce-range goes with"),
        (["--out", "{tmp}/a.onnx", "--test", "{tmp}/nothing"], "nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(pet_run: Path, tmp_path: Path, options: list[str], said: str) -> None:
    result = export(pet_run, *(option.format(tmp=tmp_path) for option in options))

    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.iterdir())


def test_a_bad_image_stops_a_calibration_and_is_listed_by_a_test(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(pets, mixed)
    (mixed / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")

    calibrated = export(
        *(pet_run, "--format", "onnx-int8", "--calibrate", mixed, "--public-data", "--out", tmp_path / "a.onnx")
    )
    tested = export(pet_run, "--out", tmp_path / "b.onnx", "--test", mixed)

    assert calibrated.exit_code == 2
    assert "0.png" in calibrated.output
    assert not (tmp_path / "a.onnx").exists()
    assert tested.exit_code == 3
    assert "cat/0.png" in tested.output
    assert "5 images of --test" in tested.output
    assert (tmp_path / "b.onnx").exists()


def test_a_missing_package_is_named_with_its_extra(
    pet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else name)

    result = export(pet_run, "--out", tmp_path / "a.onnx")

    assert result.exit_code == 2
    assert f"needs onnxscript: {install_hint('export')}" in result.output
