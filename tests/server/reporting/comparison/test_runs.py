"""Runs are compared by the figures in their files, and what makes them incomparable is said.

Drives `server.reporting.comparison.page` and `server.reporting.comparison.view`.
"""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bract
from common.errors import ConfigError
from common.page.render import render
from server.reporting.comparison.page import comparison_page, runs_table
from server.reporting.comparison.runs import cautions, different_settings, read_runs
from tests.support.server.run_folders import HOSTILE, OPEN, PRIVATE, RunOnDisk


@pytest.fixture(name="folders", scope="module")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    runs = {
        "noisy": RunOnDisk(PRIVATE),
        "plain": RunOnDisk(OPEN, rounds=6, planned=6),
        "longer": RunOnDisk(PRIVATE, rounds=5, planned=8, complete=False),
    }
    for name, run in runs.items():
        run.write(root / name)
    return [root / name for name in runs]


def test_each_row_holds_the_figures_of_its_run(folders: list[Path]) -> None:
    rows = {row[0].text: row for row in runs_table(read_runs(folders)).rows}

    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        row = rows[folder.name]
        assert row[6].value == summary["rounds"]
        assert row[3].value == summary["epsilon_max"]
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert row[7].value == sum((line["bytes_up"] + line["bytes_down"]) * line["clients"] for line in lines) / 1e6
    # The exact accuracy of a private simulation is nothing that a federation has.
    private = json.loads((folders[0] / "summary.json").read_text())["private_metrics"]
    assert rows["noisy"][2].value == private["accuracy"]
    assert rows["plain"][2].value == json.loads((folders[1] / "summary.json").read_text())["accuracy"]


def test_settings_that_differ_and_no_others_are_listed(folders: list[Path]) -> None:
    different = different_settings(read_runs(folders))

    assert different["num-rounds"] == [4, 6, 8]
    assert different["privacy.mechanism"] == ["dp-sgd", "none", "dp-sgd"]
    assert not {"output-dir", "seed", "model.backbone"} & set(different)


def test_what_cannot_be_compared_is_said(folders: list[Path], tmp_path: Path) -> None:
    RunOnDisk(PRIVATE | {"privacy.delta": 1e-6, "seed": 3}).write(tmp_path / "other")
    said = cautions(read_runs([*folders, tmp_path / "other"]))

    assert any("delta differs" in line for line in said)
    assert any("seed differs" in line for line in said)
    assert "Not complete: longer." in said
    assert cautions(read_runs(folders[:2])) == []


def test_the_page_draws_private_and_hidden_figures_apart(folders: list[Path]) -> None:
    page = render(comparison_page(read_runs(folders)))
    main = re.sub(r'<aside class="notice simulation".*?</aside>', "", page, flags=re.DOTALL)

    assert "Accuracy by counts with noise against epsilon so far" in main
    assert 'data-from="plain/rounds.jsonl#/0/accuracy"' in main
    assert 'data-from="noisy/rounds.jsonl#/0/accuracy"' not in main
    assert 'data-from="noisy/rounds.jsonl#/0/accuracy"' in page


def test_runs_of_one_name_are_told_apart(folders: list[Path], tmp_path: Path) -> None:
    RunOnDisk(OPEN).write(tmp_path / "noisy")

    names = [run.name for run in read_runs([folders[0], tmp_path / "noisy"])]
    assert len(set(names)) == 2
    assert all(name.endswith("noisy") for name in names)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [([0], "2 to 8"), ([0, 0], "stands twice"), ([0] * 9, "2 to 8"), ([0, None], "does not hold")],
)
def test_too_few_equal_or_empty_folders_are_refused(
    chosen: list[int | None], message: str, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_runs([tmp_path if at is None else folders[at] for at in chosen])


def test_the_command_prints_a_table_and_writes_the_page(folders: list[Path], tmp_path: Path) -> None:
    RunOnDisk(OPEN, clients=HOSTILE, classes=HOSTILE).write(tmp_path / "=1+1\u202e<b>")
    runs = [str(folder) for folder in (*folders, tmp_path / "=1+1\u202e<b>")]
    done = CliRunner().invoke(bract.app, ["compare", *runs, "--out", str(tmp_path / "page.html")], terminal_width=200)
    closed = CliRunner().invoke(bract.app, ["compare", *runs, "--out", str(tmp_path / "no" / "page.html")])

    assert done.exit_code == 0, done.output
    for word in ("noisy", "plain", "longer", "privacy.mechanism", "page.html"):
        assert word in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\u202e" not in done.stdout + page
    assert "<b>" not in page.replace('<b style="', "")
    assert closed.exit_code == 2
    assert "cannot be written" in closed.stderr


@pytest.mark.parametrize("name", ["summary.json", "checkpoint.safetensors", "report.html"])
def test_the_page_takes_the_place_of_no_file_of_a_run(folders: list[Path], name: str) -> None:
    file = folders[0] / name
    before = file.read_bytes() if file.exists() else None

    done = CliRunner().invoke(bract.app, ["compare", *map(str, folders), "--out", str(file)])

    assert done.exit_code == 2
    assert (file.read_bytes() if file.exists() else None) == before
