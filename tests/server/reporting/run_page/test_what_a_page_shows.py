"""What a page of a run may show: names as text alone, no place of a machine, nothing that only a simulation knows.

Drives `server.reporting.run_page.run_files`, `server.reporting.run_page.settings`, `common.page.render`.
"""

import csv
import json
import re
from pathlib import Path

import pytest

from common.config.loading import Scalar
from server.reporting.run_page.report import REPORT, write_report
from server.reporting.run_page.rounds_csv import COLUMNS, ROUNDS_CSV
from server.reporting.run_page.run_files import read_run
from tests.support.server.report_pages import RUNS, Page, in_sums, outside_boxes, rows_of
from tests.support.server.run_folders import OPEN, PRIVATE, RunOnDisk


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    RUNS["hostile"].write(tmp_path / "run")
    write_report(tmp_path / "run")
    text = (tmp_path / "run" / REPORT).read_text(encoding="utf-8")

    assert "<img src=x" not in text
    assert text.count("<script") == 1
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "\u2066" not in text
    assert "n" * 1001 not in text
    rows = rows_of(tmp_path / "run" / ROUNDS_CSV)
    assert rows[0]["missing_names"].startswith("'=HYPERLINK")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "  =1", "\r=1"])
def test_no_name_becomes_a_formula(name: str, tmp_path: Path) -> None:
    RunOnDisk(OPEN, clients=(name, "south"), failures={1: {name: "TIMEOUT"}}).write(tmp_path / "run")
    write_report(tmp_path / "run")

    row = next(csv.reader((tmp_path / "run" / ROUNDS_CSV).read_text(encoding="utf-8").splitlines()[1:]))
    assert all(not cell.strip().startswith(("=", "+", "-", "@")) for cell in row)
    assert row[COLUMNS.index("missing_names")].startswith("'")


def test_under_a_mechanism_the_main_part_has_nothing_that_only_a_simulation_sees(tmp_path: Path) -> None:
    """Every exact figure is inside a marked box."""
    for name in ("private", "client-level", "without-counts", "killed"):
        RUNS[name].write(tmp_path / name)
        write_report(tmp_path / name)
        text = (tmp_path / name / REPORT).read_text(encoding="utf-8")
        sources = [source for source, _, _ in Page(outside_boxes(text)).figures]

        hidden = re.compile(
            r"counts.json#/(exact|images)|checkpoint|summary.json#/(accuracy|macro_f1|balanced_accuracy|evaluated_examples"
            r"|per_class)|rounds.jsonl#/\d+/(accuracy|macro_f1|balanced_accuracy|loss|examples|evaluated_model)"
        )
        assert not [source for source in sources if hidden.match(source)]
        # The heading of figures by client that follow from exact counts.
        assert "held-out images</th>" not in outside_boxes(text)
        if name == "private":
            assert [source for source, _, _ in Page(text).figures if hidden.match(source)]


@pytest.mark.parametrize("kept", ["summary.json", "privacy.json", "neither"])
def test_a_page_without_some_files_hides_what_only_a_simulation_sees(kept: str, tmp_path: Path) -> None:
    RUNS["private"].write(tmp_path)
    for name in {"summary.json", "privacy.json"} - {kept}:
        (tmp_path / name).unlink()

    page = write_report(tmp_path).read_text(encoding="utf-8")

    assert page.index("Simulation only") < page.index("Accuracy and F1 on held-out images")


def test_a_report_names_no_place_on_the_machine(tmp_path: Path) -> None:
    settings = PRIVATE | {"data.path": "/home/anna/scans", "privacy.policy": "/home/anna/policy.toml"}
    RunOnDisk(settings).write(tmp_path / "run")

    page = write_report(tmp_path / "run").read_text(encoding="utf-8")

    assert "/home/anna" not in page
    assert str(tmp_path) not in page
    assert "data.path" in page


def test_the_page_of_an_open_run_says_that_it_is_not_private(tmp_path: Path) -> None:
    RUNS["open"].write(tmp_path / "run")
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")

    assert "<strong>NOT PRIVATE</strong>" in text
    assert "Nobody. The run has no privacy mechanism." in text
    assert 'class="grade critical"' in text
    assert 'class="notice simulation"' in text  # the images of each class at each client
    assert "epsilon so far" not in text.lower()


@pytest.mark.parametrize(("name", "private"), [("private", True), ("open", False)])
def test_the_settings_say_whether_a_run_is_private_where_nothing_else_does(
    name: str, private: bool, tmp_path: Path
) -> None:
    RUNS[name].write(tmp_path)
    for file in ("summary.json", "privacy.json", "rounds.jsonl"):
        (tmp_path / file).unlink()

    assert read_run(tmp_path).private is private


@pytest.mark.parametrize(("name", "boxed"), [("private", True), ("open", False), ("real", False)])
def test_warnings_of_a_private_simulation_are_a_simulations_own(name: str, boxed: bool, tmp_path: Path) -> None:
    """They may follow from exact figures."""
    RUNS[name].write(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["warnings"] = ["accuracy 0.067 on 30 held-out images"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))

    page = write_report(tmp_path).read_text(encoding="utf-8")

    assert "accuracy 0.067" in page
    assert ("accuracy 0.067" not in outside_boxes(page)) is boxed


SUMS = ["under masks that cancel", "Secure sums", "clients that must be honest in each sum"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (OPEN, ["exact sums of updates and counts left the clients", "if more than 1 of 5 collude"]),
        (
            PRIVATE,
            ["in shares, of which 3 in each sum must be honest", "adds a share of the noise"],
        ),
    ],
    ids=["exact", "noised"],
)
def test_a_page_of_secure_sums_says_what_they_rest_on(
    settings: dict[str, Scalar], said: list[str], tmp_path: Path
) -> None:
    in_sums(settings).write(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")

    for part in (*SUMS, *said):
        assert part in page
    for part in ("left every client", "exact update", "sees a message of a client", "This version does not know"):
        assert part not in page
