"""Every command of docs/use.md and every block of docs/python.md is run, in order, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)


def run(command: list[str], place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(name="environment", scope="module")
def environment_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which `bract` runs this checkout's code."""
    programs = tmp_path_factory.mktemp("programs")
    (programs / "bract").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bract "$@"\n')
    (programs / "bract").chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "160"}


@pytest.fixture(name="place", scope="module")
def place_fixture(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A folder in which all commands of docs/use.md were run."""
    place = tmp_path_factory.mktemp("place")
    for number, block in enumerate(blocks("use.md", "sh")):
        result = run(["bash", "-euo", "pipefail", "-c", block], place, environment)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        (place / f"block-{number}.txt").write_text(result.stdout)
    return place


def test_the_tutorial_ends_with_what_it_promises(place: Path) -> None:
    report = json.loads((place / "evaluation.json").read_text())
    sevens = json.loads((place / "sevens.json").read_text())

    # The digits' private default has 0.9; a broken pipeline would be far below.
    assert report["figures"]["accuracy"]["value"] > 0.8
    assert [row["class"] for row in sevens].count("7") > len(sevens) / 2
    assert (place / "evaluation.png").is_file()
    assert (place / "predictions.parquet").is_file()
    pictures = [*(place / "pictures").iterdir(), *(place / "eights").iterdir(), place / "sheet" / "contact-sheet.png"]
    assert len(pictures) == 40
    assert {picture.suffix for picture in pictures} == {".png"}
    assert any("depend on the model" in file.read_text() for file in place.glob("block-*.txt"))
    compared = next(text for file in place.glob("block-*.txt") if "McNemar" in (text := file.read_text()))
    assert "Baseline runs/digits" in compared
    assert any("scanner" in file.read_text() for file in place.glob("block-*.txt"))


def test_the_evaluation_of_the_tutorial_agrees_with_the_run(place: Path) -> None:
    """Both score the final model on the same held-out images, one by its files and one by what the run stored."""
    summary = json.loads((place / "runs" / "digits" / "summary.json").read_text())
    report = json.loads((place / "evaluation.json").read_text())

    assert report["figures"]["accuracy"]["value"] == pytest.approx(summary["accuracy"], abs=0.005)


def test_the_blocks_of_the_python_page_run_in_order(place: Path, environment: dict[str, str]) -> None:
    program = "\n".join(blocks("python.md", "python"))
    program += "\nassert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])"
    # In bfloat16 the two differ in the second digit.
    program += "\nassert np.allclose(torch.softmax(logits, 1), model.predict_proba(files[:8]), atol=0.05)"

    result = run([sys.executable, "-c", program], place, environment)

    assert result.returncode == 0, result.stderr
    assert "no-such-image.png: no such file" in result.stdout
