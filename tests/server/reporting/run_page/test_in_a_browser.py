"""Pages in Chromium: what a person sees, reads, presses and prints."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.page.render import render
from server.reporting.comparison.page import comparison_page
from server.reporting.comparison.runs import read_runs
from server.reporting.run_page.report import write_report
from tests.support.browser import Tab, running_browser
from tests.support.server.report_pages import BY_SEX
from tests.support.server.run_folders import HOSTILE, OPEN, PRIVATE, RunOnDisk

pytestmark = pytest.mark.slow

RUNS = {
    "private": RunOnDisk(PRIVATE | BY_SEX, divided=True),
    "hostile": RunOnDisk(OPEN, clients=HOSTILE, classes=HOSTILE, failures={1: {HOSTILE[0]: "TIMEOUT"}}),
    "many": RunOnDisk(
        PRIVATE,
        clients=[f"{number:05d}" for number in range(31)],
        classes=[f"class {number}" for number in range(21)],
        simulated=True,
        failures={2: {"00003": "TIMEOUT"}},
        skipped=(3,),
    ),
}
SECTIONS = {
    *("Verdict", "Planned and met clients", "Curves", "Confusion matrix", "By class", "Calibration"),
    *("Clients and classes", "Each client", "Bytes and seconds", "Privacy", "Audits", "Refusals and faults"),
    "Settings, versions and hashes",
}
PLOTS = "[...document.querySelectorAll('[data-chart=row] .plot, [data-chart=mark] .plot, [data-chart=pixels] .plot')]"


@pytest.fixture(name="tab", scope="module")
def tab_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser.new_tab()


@pytest.fixture(name="pages", scope="module")
def pages_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    for name, run in RUNS.items():
        run.write(root / name)
    pages = {name: write_report(root / name) for name in RUNS}
    pages["compared"] = root / "compared.html"
    runs = read_runs([root / name for name in RUNS])
    pages["compared"].write_text(render(comparison_page(runs)), encoding="utf-8")
    return pages


@pytest.mark.parametrize(
    ("name", "part", "width", "dark"),
    [
        ("private", "html", 400, False),
        ("hostile", "html", 900, True),
        ("compared", "html", 900, False),
        # What the others lack: a picture of many cells and a time line.
        ("many", "#mix", 1600, True),
        ("many", "#timeline", 1600, False),
    ],
)
def test_axe_core_finds_no_serious_issue(
    name: str, part: str, width: int, dark: bool, tab: Tab, pages: dict[str, Path]
) -> None:
    tab.open(pages[name], width=width, dark=dark)

    assert tab.serious_issues(part) == []


@pytest.mark.parametrize("name", [*RUNS, "compared"])
@pytest.mark.parametrize(("width", "dark"), [(400, False), (900, True), (1600, False)])
def test_nothing_is_cut_off_or_loaded_or_goes_wrong(
    name: str, width: int, dark: bool, tab: Tab, pages: dict[str, Path]
) -> None:
    tab.open(pages[name], width=width, dark=dark)

    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.requests == [pages[name].resolve().as_uri()]
    assert tab.problems == []
    assert "taken" not in tab.run("document.title")
    expected = {"Runs", "Curves", "Bytes and seconds"} if name == "compared" else SECTIONS
    assert expected <= set(tab.regions())
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 200) is dark


@pytest.mark.parametrize("name", [*RUNS, "compared"])
def test_every_chart_is_read_by_keyboard_and_mouse(name: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages[name])
    charts = tab.run(f"{PLOTS}.length")
    assert charts >= 4

    for at in range(charts):
        plot = f"{PLOTS}[{at}]"
        figure = f"{plot}.closest('figure')"
        tab.run(f"{plot}.focus()")
        for key in ("ArrowRight", "End"):
            tab.press(key)
            read = tab.run(f"{figure}.querySelector('.readout').textContent")
            assert tab.run(f"{plot}.getAttribute('aria-valuetext')") == read
        last = tab.run(f"[...{figure}.querySelectorAll('table.behind tbody tr:last-child > *')].map(c => c.innerText)")
        kind = tab.run(f"{figure}.dataset.chart")
        if kind == "pixels":
            assert read.endswith("images")
        else:
            # The figures are those of the table's last row.
            assert all(words.split("\n")[0] in read for words in last if words), (read, last)
        # Not by the real mouse: where a busy browser has not painted yet, it points at nothing.
        event = "new PointerEvent('pointermove', {clientX: box.x + 1, clientY: box.y + 1})"
        tab.run(f"(box => {plot}.dispatchEvent({event}))({plot}.getBoundingClientRect())")
        pointed = tab.run(f"{figure}.querySelector('.readout').textContent")
        # A chart of one point has nothing else to read.
        alone = tab.run(f"{plot}.getAttribute('aria-valuemax')") == "1"
        assert (pointed == read) is alone
    assert tab.problems == []


@pytest.mark.parametrize("name", ["private", "hostile"])
def test_a_matrix_is_walked_by_the_arrow_keys(name: str, tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages[name])
    tab.run("document.querySelector('table.matrix td').focus()")

    for key, row, column in (
        ("ArrowRight", 0, 1),
        ("ArrowDown", 1, 1),
        ("End", 1, 1),
        ("ArrowUp", 0, 1),
        ("ArrowUp", 0, 1),
    ):
        tab.press(key)
        at = tab.run("(c => [c.parentNode.sectionRowIndex, c.cellIndex - 1])(document.activeElement)")
        assert at == [row, column]
    shown = tab.run("document.querySelector('[data-chart=matrix] .readout').textContent")
    assert shown.endswith(f"{tab.run('document.activeElement.textContent.trim()')} images")


def test_a_table_is_sorted_by_its_headings(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["many"])
    columns = "[...document.querySelectorAll('#clients table.sortable')][0]"
    before = tab.run(f"{columns}.tBodies[0].rows[0].cells[0].innerText")
    tab.run(f"{columns}.tHead.rows[0].cells[1].querySelector('button').click()")

    assert before == "00000"
    assert tab.run(f"{columns}.tBodies[0].rows[0].cells[0].innerText") == "00030"  # the largest
    assert tab.run(f"{columns}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == "descending"


def test_a_page_prints_without_its_controls(tab: Tab, pages: dict[str, Path]) -> None:
    tab.open(pages["private"], dark=True)
    content = tab.pdf()

    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 20
    tab.call("Emulation.setEmulatedMedia", media="print")
    hidden = "['nav', 'details.data', '.readout'].map(s => getComputedStyle(document.querySelector(s)).display)"
    assert tab.run(hidden) == ["none"] * 3
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.call("Emulation.setEmulatedMedia", media="")
