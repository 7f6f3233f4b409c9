"""`bract evaluate` scores a model on a user's labelled images, in groups and against another model.

Drives `common.inference.evaluation.labelled_images`.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from typer.testing import CliRunner, Result

from bract import app
from common.config.schema import RunConfig
from common.inference.classifier import load_model
from tests.support.inference.stored_models import CLASSES, settings_of, shaded_images, store_model

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=8)


@pytest.fixture(name="run", scope="module")
def run_fixture(images: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store_model(folder, make_config(settings_of(images, "cnn")))
    return folder


@pytest.fixture(name="other", scope="module")
def other_fixture(images: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same classes in another order."""
    folder = tmp_path_factory.mktemp("other")
    settings = settings_of(images, "cnn") | {"data.classes": "owl,cat,dog"}
    store_model(folder, make_config(settings), ("owl", "cat", "dog"), seed=5)
    return folder


def evaluate(*arguments: object) -> Result:
    quick = ("--resamples", "100")
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), *quick], env={"COLUMNS": "250"})


def report_of(result: Result) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_figures_are_those_of_the_models_predictions(run: Path, images: Path) -> None:
    result = evaluate(run, images, "--json", "--least-support", 1)

    files = sorted(images.rglob("*.png"))
    labels, predicted = [file.parent.name for file in files], load_model(run).predict(files)
    report = report_of(result)
    assert (result.exit_code, report["images"], report["part"], report["faults"]) == (0, 24, "all of the source", [])
    assert report["confusion"] == metrics.confusion_matrix(labels, predicted, labels=CLASSES).tolist()
    assert report["figures"]["accuracy"]["value"] == metrics.accuracy_score(labels, predicted)
    shares = load_model(run).predict_proba(files)
    every = metrics.roc_auc_score(labels, shares, multi_class="ovr", labels=CLASSES)
    assert report["figures"]["macro_auroc"]["value"] == pytest.approx(every)


def test_the_test_part_of_a_source_is_what_is_evaluated(run: Path, images: Path, tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "dog"), ("test", "owl")):
        shutil.copytree(images / name, tmp_path / part / name)

    reports = [report_of(evaluate(run, tmp_path, "--json", *more)) for more in ((), ("--part", "train"))]

    assert [report["images"] for report in reports] == [16, 16]
    assert [[row["support"] for row in report["classes"]] for report in reports] == [[0, 8, 8], [8, 8, 0]]
    assert report_of(evaluate(run, tmp_path, "--json", "--part", "all"))["images"] == 32


def manifest(images: Path, tmp_path: Path) -> Path:
    """Write a table whose test rows come first, with a site for each row and two rows a patient."""
    lines = ["path,label,unit,split,site"]
    for number, file in enumerate(sorted(images.rglob("*.png"))):
        part = "test" if number // 2 % 3 else "train"
        lines.append(f"{file},{file.parent.name},p{number // 2},{part},{'north' if file.stem < '4' else 'south'}")
    (tmp_path / "scans.csv").write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: "train" in line)]))
    return tmp_path / "scans.csv"


@pytest.mark.parametrize("part", ["test", "all"])
def test_groups_follow_a_column_of_the_table(run: Path, images: Path, tmp_path: Path, part: str) -> None:
    file = manifest(images, tmp_path)

    report = report_of(evaluate(run, file, "--json", "--by", "site", "--part", part, "--least-support", 1))

    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    used = [row for row in rows if part == "all" or row[3] == "test"]
    for group in report["groups"]:
        own = [row for row in used if row[4] == group["group"]]
        predicted = load_model(run).predict([row[0] for row in own])
        right = [row[1] == name for row, name in zip(own, predicted, strict=True)]
        assert group["images"] == len(own)
        assert group["figures"]["accuracy"]["value"] == np.mean(right)
    assert [group["group"] for group in report["groups"]] == ["north", "south"]
    assert "bootstrap over units" in report["intervals"]
    assert report["units"] < report["images"]


def test_a_baseline_of_classes_in_another_order_is_compared_image_by_image(
    run: Path, other: Path, images: Path
) -> None:
    report = report_of(evaluate(run, images, "--json", "--baseline", other))

    files = sorted(images.rglob("*.png"))
    labels = np.array([file.parent.name for file in files])
    here, before = (np.array(load_model(place).predict(files)) == labels for place in (run, other))
    found = report["baseline"]
    assert found["model"] == str(other)
    assert (found["right_here_only"], found["right_in_baseline_only"]) == (
        int((here & ~before).sum()),
        int((before & ~here).sum()),
    )
    assert found["accuracy"] == before.mean()
    assert before.mean() != here.mean()


def test_bad_images_and_unknown_classes_are_listed_and_the_others_are_evaluated(
    run: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "bad.png").write_bytes(b"no image")
    shutil.copytree(images / "cat", tmp_path / "pets" / "rat")

    result = evaluate(run, tmp_path / "pets", "--json")

    report = report_of(result)
    assert (result.exit_code, report["images"]) == (3, 24)
    faults = {fault["image"]: fault["reason"] for fault in report["faults"]}
    assert len(faults) == 9
    assert "not an image" in faults["cat/bad.png"]
    assert "unknown class 'rat'" in faults["rat/0.png"]
    assert "cat/bad.png: not an image" in evaluate(run, tmp_path / "pets").stdout


def test_the_terminal_shows_figures_and_the_picture_is_the_owners_alone(
    run: Path, images: Path, tmp_path: Path
) -> None:
    old = os.umask(0)
    try:
        result = evaluate(run, images, "--out", tmp_path / "found.png")
    finally:
        os.umask(old)

    assert result.exit_code == 0, result.output
    words = ("accuracy", "macro AUROC", "Brier", "owl", "fewer than 10 images (--least-support): cat, dog, owl")
    assert all(word in result.stdout for word in words)
    assert stat.S_IMODE((tmp_path / "found.png").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["{images}", "--by", "site"], "is not a manifest"),
        (["{table}", "--by", "scanner"], "lacks the column scanner"),
        (["{images}", "--out", "{run}/model/found.png"], "folder of the model"),
        (["{images}", "--out", "found.pdf"], "ending in .png"),
        (["{images}/cat"], "no images found"),
        (["{flat}"], "has no image of the model's classes"),
        (["{images}", "--baseline", "{strange}"], "different classes"),
        (["/no/such/folder"], "no such folder"),
        (["{images}", "--set", "data.alhpa=1"], "did you mean"),
        (["{images}", "--set", "data.source=digits"], "--set data.source: SOURCE stands in its place"),
        (["{images}", "--set", "data.classes=cat,owl"], "--set data.classes: the classes of MODEL stand"),
    ],
)
def test_a_mistake_ends_in_exit_code_2(
    run: Path, images: Path, tmp_path: Path, make_config: MakeConfig, arguments: list[str], fragment: str
) -> None:
    for name in ("mouse", "rat"):
        shutil.copytree(images / "cat", tmp_path / "flat" / name)
    settings = settings_of(images, "cnn") | {"data.classes": "cat,dog,emu"}
    store_model(tmp_path / "strange", make_config(settings), ("cat", "dog", "emu"))
    places = {"images": images, "run": run, "flat": tmp_path / "flat", "strange": tmp_path / "strange"}
    places["table"] = manifest(images, tmp_path)

    result = evaluate(run, *(part.format(**places) for part in arguments))

    assert (result.exit_code, result.stdout.strip()) == (2, "")
    assert fragment in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluating_writes_nothing_beside_the_model(run: Path, images: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}

    before = state()

    assert evaluate(run / "model", images).exit_code == 0
    assert state() == before
