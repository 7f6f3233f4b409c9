"""`bract export` writes one file, and measures private images for nobody but the person who asked.

Drives `common.inference.export.accuracy`, `common.inference.export.pixel_batches`.
"""

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from bract import app
from common.commands.models.export import _say_pruned
from common.inference.export import onnx_file
from common.inference.export.accuracy import Hits
from common.inference.export.formats import Export
from common.inference.export.pruning import Part
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
        (["--out", "{tmp}/a.onnx", "--prune", "1"], "above 0 and below 1"),
        (["--out", "{tmp}/a.onnx", "--prune", "nan"], "above 0 and below 1"),
        (["--out", "{tmp}/a.onnx", "--prune-by", "weights"], "goes with --prune"),
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


@pytest.mark.parametrize(
    ("part", "fraction", "said"),
    [
        ("channels", 0.25, ["of the channels inside blocks removed", "points of accuracy on these images"]),
        ("weights", 0.5, ["set to zero", "as large and as fast as before. Compressed it has"]),
    ],
)
def test_a_pruning_says_what_it_costs_and_writes_nothing_of_it(
    pet_run: Path, pets: Path, tmp_path: Path, part: str, fraction: float, said: list[str]
) -> None:
    wanted = (pet_run, "--prune", fraction, "--prune-by", part, "--format", "torch-export", "--out")

    plain = export(*wanted, tmp_path / "a.pt2")
    tested = export(*wanted, tmp_path / "b.pt2", "--test", pets)

    assert plain.exit_code == tested.exit_code == 0, plain.output + tested.output
    assert "was not measured: --test SOURCE does it" in plain.output
    assert [text for text in said if text not in tested.output] == []
    assert "PyTorch, pruned" in tested.output
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


@pytest.mark.parametrize(
    ("right", "part", "cost", "advice"),
    [
        ((90, 60, 90), "channels", "30.0 points", "Remove less, use --prune-by weights, or train"),
        ((90, 60, 90), "weights", "30.0 points", "Remove less, or train"),
        ((900, 891, 0), "weights", "9.0 points", "Remove less"),
        ((90, 90, 10), "channels", "0.0 points", ""),
    ],
)
def test_a_pruning_that_costs_much_is_followed_by_advice(
    right: tuple[int, ...], part: Part, cost: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = Export(b"", 0.0, (), "20% of something", part)

    _say_pruned(pruned, Hits(right, 100, ()), Console(width=200))

    output = capsys.readouterr().out
    assert cost in output
    assert (advice in output) if advice else ("Remove" not in output)
