"""The report of a run states what its files hold, whatever they hold.

Drives `server.reporting.counts_file`, `server.reporting.run_page.class_table`,
`server.reporting.run_page.clients_table`,
`server.reporting.run_page.cost`, `server.reporting.run_page.guarantee`, `server.reporting.run_page.run_files`,
`server.reporting.run_page.settings`, `server.reporting.run_page.timeline`, `server.reporting.run_page.utility`,
`server.reporting.run_page.verdict`, `server.reporting.run_page.rounds_csv`, `common.page.render`,
`common.page.templates`, `common.page.style`, `common.page.script` and
`server.commands.report`.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bract
from common.messages.codec import Evaluation
from common.metrics import NoisedCounts
from server.reporting.counts_file import final_counts
from server.reporting.run_page import clients_table, report
from server.reporting.run_page.clients_table import clients_section
from server.reporting.run_page.report import REPORT, try_report, write_report
from server.reporting.run_page.rounds_csv import ROUNDS_CSV
from server.reporting.run_page.run_files import read_run
from server.rounds.closing_evaluation import ClosingEvaluation
from tests.support.server.report_pages import FAULTY, RUNS, in_sums, page_of, rows_of, value_at
from tests.support.server.run_folders import OPEN, PRIVATE, RunOnDisk

SECTIONS = [
    *("Verdict", "Planned and met clients", "Curves", "Confusion matrix", "By class", "Calibration"),
    *("Clients and classes", "Each client", "Bytes and seconds", "Privacy", "Audits", "Refusals and faults"),
    "Settings, versions and hashes",
]


@pytest.fixture(name="folder", scope="module", params=RUNS)
def folder_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    RUNS[request.param].write(folder)
    write_report(folder)
    return folder


def test_every_figure_equals_the_file_that_it_names(folder: Path) -> None:
    figures = [figure for figure in page_of(folder).figures if figure[0]]

    for source, value, shown in figures:
        stored = value_at(folder, source)
        assert float(value) == stored, source
        number = shown.replace(",", "").partition(" of ")[0]
        # Epsilon is rounded up, everything else to the nearest.
        digits = len(number.partition(".")[2]) if "e" not in number else 9
        assert abs(float(number) - stored) <= 10.0**-digits, (source, shown)
    if "before" not in folder.name:
        assert len(figures) > 20


def test_figures_without_a_file_are_few_and_known(folder: Path) -> None:
    """Each is derived: epsilon so far, sums of counts, figures of noised counts, accuracy of one client."""
    derived = {shown for source, _, shown in page_of(folder).figures if not source}

    if folder.name == "open":
        confusion = np.array(json.loads((folder / "counts.json").read_text())["exact"]["confusion"])
        assert {f"{count:,}" for count in confusion.sum(axis=1)} <= derived
    assert len(derived) < 120


def test_each_run_has_all_sections_in_order(folder: Path) -> None:
    page = page_of(folder)

    divided = "divided" in folder.name
    assert page.titles == [*SECTIONS[:5], *(["By subgroup"] if divided else []), *SECTIONS[5:]]
    text = (folder / REPORT).read_text(encoding="utf-8")
    assert "do not have what this section needs" not in text
    assert len(text.encode()) < 3e6


def test_a_page_loads_and_sends_nothing(folder: Path) -> None:
    page = page_of(folder)

    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "form", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "poster"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/png;base64,")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")], tag
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; script" in policy
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [attributes for attributes in scripts if attributes.get("type") != "application/json"] == [{}]


def test_the_table_of_rounds_holds_the_rounds(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    privacy = json.loads((folder / "privacy.json").read_text())
    rows = rows_of(folder / ROUNDS_CSV)

    assert [int(row["round"]) for row in rows] == [line["round"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert float(row["seconds"]) == line["seconds"]
        assert float(row["bytes_up_per_client"]) == line["bytes_up"]
        assert row["private_accuracy"] == str(line.get("private", {}).get("accuracy", ""))
        assert row["public_test_loss"] == str(line.get("public_test", {}).get("loss", ""))
        assert row["epsilon_so_far_rdp"] == str(line.get("epsilon_so_far", ""))
        shown = row["simulation_only_accuracy"] if line.get("simulation_only") else row["accuracy"]
        assert shown == str(line.get("accuracy", ""))
        # Under a mechanism the open columns stay empty: a reader must not take them for what was released.
        assert not (line.get("simulation_only") and row["accuracy"])
    if privacy["private"] and rows:
        so_far = [float(row["epsilon_so_far_pld"]) for row in rows]
        assert so_far == sorted(so_far)
        assert so_far[0] > 0
        assert so_far[-1] <= float(rows[-1]["epsilon_whole_run_pld"]) == privacy["epsilon_max"]
    elif rows:
        assert rows[0]["epsilon_so_far_pld"] == rows[0]["epsilon_whole_run_pld"] == ""


@pytest.mark.parametrize(("name", "said"), [("scored", "the noise in the counts alone"), ("scored-open", "differ on")])
def test_scores_that_clients_released_give_calibration_and_auroc(name: str, said: str, tmp_path: Path) -> None:
    RUNS[name].write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "summary.json").read_text())["score_metrics"]

    shown = {source for source, _, _ in page_of(tmp_path).figures}
    assert {"summary.json#/score_metrics/ece", "summary.json#/score_metrics/confidence/1/14"} <= shown
    assert ("summary.json#/score_metrics/macro_auroc" in shown) is (summary["macro_auroc"] is not None)
    assert said in text
    assert "rounds.jsonl#/3/public_test/accuracy" in shown
    assert text.index("public test images") < text.index("Confusion matrix</h2>")


@pytest.mark.parametrize(("name", "said"), [("divided", "each count carries noise of"), ("divided-open", "Wilson")])
def test_subgroups_are_in_the_order_of_the_public_list_with_their_intervals(
    name: str, said: str, tmp_path: Path
) -> None:
    RUNS[name].write(tmp_path)
    section = write_report(tmp_path).read_text(encoding="utf-8").partition('<section id="subgroups"')[2]
    section = section.partition("</section>")[0]
    summary = json.loads((tmp_path / "summary.json").read_text())["subgroup_metrics"]

    names = [place for place in ("f", "m", "other") if summary["subgroups"][place]["accuracy"] is not None]
    # Noise hides the accuracy of the few others.
    assert ("other" in names) == (name == "divided-open")
    chart, table = section.split('<table class="plain">')
    assert re.findall(r"<bdi>(\w+)</bdi>", table) == ["f", "m", "other"]
    assert chart.count('class="band"') == len(names)
    figure = next(f for f in page_of(tmp_path).figures if f[0] == "summary.json#/subgroup_metrics/subgroups/m/accuracy")
    assert float(figure[1]) == summary["subgroups"]["m"]["accuracy"]
    assert "{low:.3f} to {high:.3f}".format(**summary["subgroups"]["m"]) in table
    assert said in section
    assert "sortable" not in section


def test_missing_clients_and_faults_are_named_and_bold(tmp_path: Path) -> None:
    FAULTY.write(tmp_path / "run")
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")

    assert '<strong><data value="5" data-from="summary.json#/clients">5 of 7</data></strong>' in text
    assert re.search(r"<strong>south in 2 of 5 rounds \(\d+% of the declared images\)", text)
    assert "refused 1, update missing 3, round skipped 1" in text
    assert "Real clients would have got" not in text


def test_a_run_that_never_began_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "refused"
    folder.mkdir()
    (folder / "config.toml").write_text("num-rounds = 3\nnum-clients = 5\n")
    (folder / "stopped.txt").write_text("FederationError: only 2 of 5 clients take part\n")

    text = write_report(folder).read_text(encoding="utf-8")
    assert page_of(folder).titles == SECTIONS
    assert text.count("only 2 of 5 clients take part") >= 3
    assert "It has cost nobody anything yet" in text


def test_a_killed_run_is_not_called_complete(tmp_path: Path) -> None:
    for name in ("killed", "interrupted"):
        RUNS[name].write(tmp_path / name)
        text = write_report(tmp_path / name).read_text(encoding="utf-8")

        assert "the run is not complete" in text
        assert "the whole plan, until the run is complete" in text


def test_a_damaged_file_costs_its_own_sections_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RUNS["private"].write(folder)
    (folder / "summary.json").write_text('{"status": "complete", "missing": 3')
    (folder / "counts.json").write_text("[]")
    lines = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(f"not JSON\n{lines}{{half a line")

    text = write_report(folder).read_text(encoding="utf-8")
    assert page_of(folder).titles == SECTIONS
    for said in ("summary.json is damaged", "counts.json is damaged", "1 lines of rounds.jsonl are damaged"):
        assert said in text
    assert "Seconds a round" in text

    RUNS["private"].write(tmp_path / "other")
    (tmp_path / "other" / "summary.json").write_text('{"status": "complete", "seconds": 1, "clients": 2}')
    assert "do not have what this section needs (KeyError" in write_report(tmp_path / "other").read_text()


def test_a_page_names_the_digests_of_the_files_that_it_is_made_from(folder: Path) -> None:
    text = (folder / REPORT).read_text(encoding="utf-8")

    for name in ("config.toml", "summary.json", "privacy.json", "rounds.jsonl", "counts.json"):
        if (folder / name).is_file():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in text
    again = write_report(folder).read_text(encoding="utf-8")
    assert again == text


def test_a_fault_in_the_report_is_one_line_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Path) -> Path:
        raise ZeroDivisionError("in the report")

    RUNS["open"].write(tmp_path / "run")
    monkeypatch.setattr(report, "write_report", broken)
    monkeypatch.setattr(report._log, "propagate", True)
    try_report(tmp_path / "run")
    try_report(tmp_path / "nothing")

    assert caplog.messages == [
        "report.html was not written (ZeroDivisionError: in the report); `bract report` makes it again"
    ]


def test_the_command_writes_page_and_table(tmp_path: Path) -> None:
    RUNS["open"].write(tmp_path / "run")
    done = CliRunner().invoke(bract.app, ["report", str(tmp_path / "run")])
    refused = CliRunner().invoke(bract.app, ["report", str(tmp_path)])

    assert done.exit_code == 0
    assert "report.html" in done.stdout
    assert (tmp_path / "run" / REPORT).is_file()
    assert (tmp_path / "run" / ROUNDS_CSV).is_file()
    assert refused.exit_code == 2
    assert "does not hold a run" in refused.stderr


def test_clients_are_listed_by_name_and_never_by_a_figure(tmp_path: Path) -> None:
    FAULTY.write(tmp_path / "run")
    table = next(block for block in clients_section(read_run(tmp_path / "run")).blocks if block.kind == "table")

    assert [row[0].text for row in table.rows] == sorted(FAULTY.clients)  # type: ignore[union-attr]
    assert not [column for column in table.columns if "macro" in column or "balanced" in column]  # type: ignore[union-attr]


def test_more_clients_than_a_page_holds_are_counted_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_table, "_MAX_LISTED", 4)
    monkeypatch.setattr(clients_table, "_MAX_CELLS", 17)
    RunOnDisk(OPEN, clients="abcdefgh").write(tmp_path / "crowd")
    text = write_report(tmp_path / "crowd").read_text(encoding="utf-8")

    assert "4 of 8 clients" in text
    assert "All images of the first 5 clients" in text


def test_a_report_of_many_clients_and_classes_is_small(tmp_path: Path) -> None:
    names = [f"{number:05d}" for number in range(1000)]
    many = RunOnDisk(OPEN, clients=names, classes=[f"class {number}" for number in range(100)], rounds=3, planned=3)
    many.write(tmp_path / "many")
    write_report(tmp_path / "many")

    assert (tmp_path / "many" / REPORT).stat().st_size < 3e6


def test_noise_and_steps_of_the_training_are_among_the_terms(tmp_path: Path) -> None:
    RUNS["private"].write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")

    clients = json.loads((tmp_path / "privacy.json").read_text())["clients"]
    rates = sorted({client["events"]["training"][0]["sample-rate"] for client in clients.values()})
    assert ">40 (of the noise in a step over what one unit can change in it)<" in text
    steps = sorted({client["events"]["training"][0]["steps"] for client in clients.values()})
    for values in (rates, steps):
        shown = f"{values[0]:.4g}" if len(values) == 1 else f"{values[0]:.4g} to {values[-1]:.4g}, by client"
        assert f">{shown} (" in text


def test_loss_on_public_images_has_a_curve_of_its_own(tmp_path: Path) -> None:
    RUNS["scored"].write(tmp_path)
    write_report(tmp_path)

    shown = {source for source, _, _ in page_of(tmp_path).figures}
    assert {f"rounds.jsonl#/{at}/public_test/loss" for at in range(4)} <= shown


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("private", ["with noise; how many", "whether it trained or tested", "Does another run cost more?"], []),
        ("open", ["without noise; how many", "as exact counts", "are critical: 2"], ["Does another run cost more?"]),
        ("client-level", ["without noise; each client", "with all of its images"], ["head of its ledger"]),
        ("without-counts", ["with noise; each client"], ["how many predictions"]),
        ("sums", ["sums over the features of the training images, for all and by class, with noise"], ["the changes"]),
        ("sums-open", ["for all and by class, without noise"], ["the changes"]),
        ("divided", ["right, by class and by subgroup, as counts with noise"], []),
    ],
)
def test_newcomers_are_told_what_left_and_what_it_means(
    name: str, said: list[str], unsaid: list[str], tmp_path: Path
) -> None:
    RUNS[name].write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    table = text.partition("In plain words</caption>")[2].partition("</table>")[0]

    for part in said:
        assert part in table
    for part in unsaid:
        assert part not in table
    assert ("73.11 %" in table or "73.12 %" in table) == (not name.endswith("open")), "what epsilon 1 would mean"


def test_largest_class_is_named_only_where_noise_leaves_it(tmp_path: Path) -> None:
    """The largest of many noised sums is the one with the most noise."""
    texts = []
    for noise in (1.0, 400.0):
        run = RunOnDisk(PRIVATE | {"privacy.closing-noise": noise})
        run.write(tmp_path / str(noise))
        texts.append(write_report(tmp_path / str(noise)).read_text(encoding="utf-8"))

    assert ["Always guessing the largest class" in text for text in texts] == [True, False]
    assert ["most of what is shown is noise" in text for text in texts] == [False, True]


def test_calibration_leaves_out_bins_of_noise_and_says_how_many_classes_have_an_auroc(tmp_path: Path) -> None:
    RUNS["scored"].write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8").partition('<section id="calibration"')[2]
    summary = json.loads((tmp_path / "summary.json").read_text())["score_metrics"]
    noise = json.loads((tmp_path / "privacy.json").read_text())["metrics"]["calibration_noise_stddev"] * 2**0.5

    rows = re.findall(r'<th scope="row">[\d.]+ to [\d.]+</th><td class="n">(.*?)</td>', text)
    wrong, right = summary["confidence"]
    hidden = [hits + misses <= 2 * 2**0.5 * noise for hits, misses in zip(right, wrong, strict=True)]
    assert [row == "-" for row in rows] == hidden
    assert any(hidden)
    known = sum(row["auroc"] is not None for row in summary["classes"].values())
    assert known in (0, 3) or f"over {known} of 3 classes" in text


def test_the_matrix_of_a_secure_sum_is_shown_though_no_clients_own_is_known(tmp_path: Path) -> None:
    state = in_sums(PRIVATE).write(tmp_path)
    summed = NoisedCounts(np.diag([70, 80, 90]), 4)
    state.closing = ClosingEvaluation(summed=Evaluation(None, noised=summed))

    private = final_counts(state)["private"]

    assert (private["confusion"], private["num_clients"]) == (summed.cells.tolist(), 4)
    assert private["clients"] == {}
