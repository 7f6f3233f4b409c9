"""Ratios pair by pair, tables and the page of stored results.

Drives `simulations.benchmarks.contract`, `simulations.benchmarks.measuring.tables`, `simulations.benchmarks.page`,
`simulations.benchmarks.measuring.machine`, `simulations.benchmarks.measuring.pictures`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from simulations.benchmarks.contract import Figure
from simulations.benchmarks.engine import BENCHMARK
from simulations.benchmarks.measuring.machine import describe_machine
from simulations.benchmarks.measuring.pictures import draw_bars
from simulations.benchmarks.measuring.results import pair_ratios, summarize
from simulations.benchmarks.measuring.tables import markdown
from simulations.benchmarks.page import updated_page
from simulations.benchmarks.peers.small_images import write_images
from tests.support.paths import ROOT

SECONDS, RATE = Figure("s", "seconds"), Figure("r", "images/s", larger_is_better=True)


@pytest.mark.parametrize(
    ("figure", "ours", "theirs", "ratios"),
    [
        (SECONDS, [1.0, 2.0], [3.0, 2.0], [3.0, 1.0]),
        (RATE, [6.0, 2.0], [3.0, 2.0], [2.0, 1.0]),
        (SECONDS, [1.0, 0.0], [3.0, 2.0], [3.0]),
    ],
)
def test_a_ratio_above_one_means_that_the_first_variant_is_ahead(
    figure: Figure, ours: list[float], theirs: list[float], ratios: list[float]
) -> None:
    pairs = [[{figure.key: value} for value in values] for values in (ours, theirs)]

    assert pair_ratios(*pairs, figure) == ratios


def test_ratios_are_taken_within_pairs_not_between_medians() -> None:
    # A machine that turns ten times slower for one pair moves both medians, but no ratio.
    samples = [[{"s": 1.0}, {"s": 10.0}, {"s": 1.0}], [{"s": 2.0}, {"s": 20.0}, {"s": 2.0}]]

    first, second = summarize(["ours", "theirs"], samples, [SECONDS])

    assert first["ratios"] == {}
    assert second["figures"]["s"] == {"min": 2.0, "median": 2.0, "max": 20.0}
    assert second["ratios"]["s"] == {"min": 2.0, "median": 2.0, "max": 2.0}


def results_of_engine() -> dict[str, object]:
    samples = [[{"messages_a_second": 50.0}], [{"messages_a_second": 2.0}], []]
    rows = summarize(["in-process", "Ray", "other"], samples, BENCHMARK.figures)
    for row, skipped in zip(rows, ("", "", "needs a|b"), strict=True):
        row["skipped"] = skipped
    case = {"name": "10 clients", "variants": rows}
    about = {"benchmark": "engine", "about": "Engines.", "date": "2026-01-02T03:04:05", "command": "bract bench engine"}
    return {**about, "machine": describe_machine(), "pairs": 1, "quick": False, "cases": [case]}


def test_a_section_names_date_command_machine_and_what_was_not_measured() -> None:
    text = markdown(BENCHMARK, results_of_engine())

    assert "2026-01-02, `bract bench engine`" in text
    assert "| 10 clients | in-process | 50.0 |" in text
    assert "| Ray | 2.00 | 25.0 x |" in text
    assert "| other | not measured |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_page_takes_stored_results_and_keeps_all_other_text(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(results_of_engine()))
    page = "above\n<!-- begin engine -->\nold\n<!-- end engine -->\n<!-- begin dp -->\nkept\n<!-- end dp -->\nbelow\n"

    updated = updated_page(page, tmp_path)

    assert updated.startswith("above\n<!-- begin engine -->\n## engine\n")
    assert updated.endswith("<!-- end engine -->\n<!-- begin dp -->\nkept\n<!-- end dp -->\nbelow\n")
    assert updated_page(updated, tmp_path) == updated


def test_the_page_of_this_project_shows_its_stored_results() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()

    assert updated_page(page, ROOT / "docs" / "benchmarks") == page


def test_small_images_are_the_same_in_tables_and_arrays(tmp_path: Path) -> None:
    write_images(tmp_path, data="", num_train=12, num_test=4)
    write_images(tmp_path / "again", data=str(tmp_path), num_train=12, num_test=4)

    with np.load(tmp_path / "images.npz") as first, np.load(tmp_path / "again" / "images.npz") as second:
        assert first["train_x"].shape == (12, 32, 32, 3)
        for part in ("train", "test"):
            order = np.random.default_rng(0).permutation(len(first[f"{part}_y"]))
            assert (second[f"{part}_x"] == first[f"{part}_x"][order]).all()
            assert (second[f"{part}_y"] == first[f"{part}_y"][order]).all()
    with pytest.raises(ConfigError, match="has 4 images and 5 are needed"):
        write_images(tmp_path / "more", data=str(tmp_path), num_train=12, num_test=5)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw_bars(tmp_path / "engine.png", BENCHMARK, results_of_engine())

    assert (tmp_path / "engine.png").stat().st_size > 1000
