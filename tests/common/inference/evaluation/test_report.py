"""A report has every figure with its interval, groups, and a comparison on the same images.

Drives `common.inference.evaluation.view`, `common.inference.evaluation.plot`.
"""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from common.inference.evaluation.intervals import wilson
from common.inference.evaluation.plot import draw_evaluation
from common.inference.evaluation.report import compare, evaluate, full_report
from common.inference.evaluation.scored_images import ScoredImages
from common.inference.evaluation.view import show_report

NAMES = ("cat", "dog", "owl")


def scored_of(right: list[bool], labels: list[int], units: list[int] | None = None) -> ScoredImages:
    """Scores whose most likely class is the true one where `right` says so, else the next one."""
    numbers = np.array(labels)
    logits = np.random.default_rng(0).normal(0, 0.1, (len(labels), 3))
    logits[np.arange(len(labels)), np.where(right, numbers, (numbers + 1) % 3)] += 2.0
    return ScoredImages(numbers, logits, np.array(range(len(labels)) if units is None else units))


LABELS = [0] * 30 + [1] * 20 + [2] * 5
RIGHT = ([True] * 9 + [False]) * 5 + [True] * 5


def test_shares_of_independent_images_have_wilsons_interval() -> None:
    report = evaluate(scored_of(RIGHT, LABELS), NAMES, least_support=1, resamples=200)

    low, high = wilson(50, 55)
    assert report["figures"]["accuracy"] == {"value": 50 / 55, "low": low, "high": high}
    low, high = wilson(27, 30)
    assert report["classes"][0]["recall"] == {"value": 27 / 30, "low": low, "high": high}
    low, high = wilson(5, 7)
    assert report["classes"][2]["precision"] == {"value": 5 / 7, "low": low, "high": high}
    assert report["classes"][0]["support"] == 30
    assert "Wilson" in report["intervals"]
    for figure in [*report["figures"].values(), *(row["f1"] for row in report["classes"])]:
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_shares_of_images_in_units_have_the_interval_of_a_bootstrap() -> None:
    grouped = evaluate(scored_of(RIGHT, LABELS, [row // 5 for row in range(55)]), NAMES, least_support=1, resamples=200)

    low, high = wilson(50, 55)
    assert grouped["units"] == 11
    assert "Wilson" not in grouped["intervals"]
    assert (grouped["figures"]["accuracy"]["low"], grouped["figures"]["accuracy"]["high"]) != (low, high)


def test_classes_with_few_images_are_left_out_of_averages_and_said() -> None:
    scored = scored_of(RIGHT, LABELS)

    all_of_them, most = (evaluate(scored, NAMES, least_support=least, resamples=100) for least in (1, 6))

    recalls = [row["recall"]["value"] for row in most["classes"]]
    assert (all_of_them["left_out"], most["left_out"]) == ([], ["owl"])
    assert all_of_them["figures"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert most["figures"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls[:2]))
    assert "fewer than 6 images (--least-support): owl." in shown(most | {"part": "all"})
    none = evaluate(scored, NAMES, least_support=100, resamples=100)
    assert none["figures"]["macro_f1"] == {"value": None, "low": None, "high": None}


def test_groups_have_reports_of_their_own() -> None:
    scored = scored_of(RIGHT, LABELS)
    groups = ["north" if row % 2 else "" for row in range(55)]

    report = full_report([scored], NAMES, groups=groups, names=("site", ""), least_support=3, resamples=100)

    rows = np.array([name == "north" for name in groups])
    expected = evaluate(scored.part(rows), NAMES, least_support=3, resamples=100)
    assert [group["group"] for group in report["groups"]] == ["", "north"]
    assert report["groups"][1] == {"group": "north"} | expected
    assert report["groups"][0]["left_out"] == []
    assert report["groups"][1]["left_out"] == ["owl"]
    text = shown(report | {"part": "all"})
    assert all(word in text for word in ("site", "(empty)", "north", "owl", "over different classes in groups"))


def test_two_models_are_compared_by_mcnemars_test() -> None:
    labels = [0] * 40
    here, before = [True] * 30 + [False] * 10, [True] * 20 + [False] * 14 + [True] * 6

    found = compare(scored_of(here, labels), scored_of(before, labels), resamples=400)

    assert (found["right_here_only"], found["right_in_baseline_only"]) == (10, 6)
    assert found["p_value"] == pytest.approx(binomtest(10, 16).pvalue)
    assert found["accuracy"] == 26 / 40
    assert found["difference"]["value"] == pytest.approx(0.1)
    # The spread of a paired difference: sqrt(16/40 - 0.1^2) / sqrt(40) is 0.0988.
    assert found["difference"]["low"] == pytest.approx(0.1 - 1.96 * 0.0988, abs=0.04)
    assert found["difference"]["high"] == pytest.approx(0.1 + 1.96 * 0.0988, abs=0.04)
    assert compare(scored_of(here, labels), scored_of(here, labels), resamples=100)["p_value"] == 1.0
    assert not compare(scored_of(here, labels, [0] * 40), scored_of(before, labels), resamples=100)[
        "images_are_independent"
    ]


def test_a_report_is_json_and_a_class_without_images_has_no_figures() -> None:
    report = evaluate(scored_of([True] * 4, [0, 0, 1, 1]), NAMES, least_support=1, resamples=100)

    text = json.dumps(report, allow_nan=False)

    assert json.loads(text)["classes"][2]["recall"]["value"] is None
    assert json.loads(text)["left_out"] == ["owl"]
    assert "-" in shown(report | {"part": "all"})


def shown(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), record=True, width=250)
    show_report(report, console)
    return console.export_text()


def test_the_terminal_shows_groups_and_comparison() -> None:
    models = [scored_of(RIGHT, LABELS, [row // 5 for row in range(55)]), scored_of([not hit for hit in RIGHT], LABELS)]
    report = full_report(models, NAMES, groups=[], names=("", "runs/OLD"), least_support=1, resamples=100)

    text = shown(report | {"part": "all of the source"})

    assert "Baseline runs/OLD: accuracy 0.0909; difference +0.8182 (+" in text
    assert "trust the interval" in text
    assert "all of the source" in text


@pytest.mark.parametrize("classes", [3, 45, 300])
def test_the_picture_stays_small_with_many_classes(classes: int) -> None:
    names = [f"class ${number}" for number in range(classes)]
    report = {
        "classes": [{"class": name} for name in names],
        "confusion": np.eye(classes, dtype=int).tolist(),
        "reliability": evaluate(scored_of(RIGHT, LABELS), NAMES, least_support=1, resamples=100)["reliability"],
        "figures": {"ece": {"value": 0.1}},
    }

    image = Image.open(io.BytesIO(draw_evaluation(report, "pets $5")))

    assert image.format == "PNG"
    assert image.width * image.height < 5_000_000
