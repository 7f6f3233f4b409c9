"""A server's public images give figures that no client is asked for.

Drives `common.config.evaluation`, `simulations.app`, `simulations.image_record`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from bract import app
from common.config.schema import RunConfig
from common.models.initialization import initial_arrays
from server import federation
from simulations.app import make_context
from tests.support.data.sources import write_png

SETTINGS = ("num-clients=2", "num-rounds=3", "model.backbone=cnn", "data.image-size=8", "privacy.mechanism=none")


def bract(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})


def simulate(folder: Path, name: str, *settings: str) -> Result:
    given = [word for pair in (*SETTINGS, *settings) for word in ("--set", pair)]
    return bract("simulate", str(folder / "photos"), "--out", str(folder / name), *given)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the clients' photos/ and the server's public/."""
    for number in range(12):
        name = "cat" if number % 2 else "dog"
        write_png(tmp_path / "photos" / name / f"{number}.png", 10 * number, side=8)
        write_png(tmp_path / "public" / name / f"p{number}.png", 10 * number + 5, side=8 + number % 3)
    return tmp_path


def test_figures_are_those_that_bract_evaluate_finds(place: Path) -> None:
    done = simulate(place, "run", f"evaluation.folder={place / 'public'}", "evaluation.folder-every=2")
    assert done.exit_code == 0, done.output

    lines, summary = lines_of(place / "run"), json.loads((place / "run" / "summary.json").read_text())
    assert [line.get("public_test", {}).get("evaluated_model") for line in lines] == [None, 2, None]
    few = ("--least-support", "1", "--resamples", "100", "--json")
    found = json.loads(bract("evaluate", str(place / "run"), str(place / "public"), *few).output)["figures"]
    public = summary["public_test"]
    assert public["evaluated_model"] == 3
    assert public["examples"] == 12
    for key in ("accuracy", "macro_f1", "macro_auroc", "ece"):
        assert public[key] == pytest.approx(found[key]["value"], abs=1e-6), key
    assert "public test" in done.output
    assert f"{public['accuracy']:.4f}" in done.output


def test_clients_and_model_are_as_without_public_images(place: Path) -> None:
    assert simulate(place, "with", f"evaluation.folder={place / 'public'}").exit_code == 0
    assert simulate(place, "without").exit_code == 0

    assert "public_test" in lines_of(place / "with")[0]
    volatile = ("seconds", "public_test")
    with_, without = (
        [{key: value for key, value in line.items() if key not in volatile} for line in lines_of(place / run)]
        for run in ("with", "without")
    )
    assert with_ == without
    models = [load_file(place / run / "model" / "model.safetensors") for run in ("with", "without")]
    assert all(np.array_equal(models[0][name], models[1][name]) for name in models[0])


def remove_class(public: Path) -> None:
    for file in (public / "cat").iterdir():
        file.unlink()
    (public / "cat").rmdir()


def add_class(public: Path) -> None:
    write_png(public / "horse" / "1.png", 3, side=8)


def rename_class(public: Path) -> None:
    (public / "cat").rename(public / "cats")


def damage(public: Path) -> None:
    for file in public.rglob("*.png"):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda public: public.rename(public.parent / "away"), "there is no such folder or table"),
        (remove_class, "no image of cat"),
        (add_class, "data.classes leaves out horse (1 images)"),
        (rename_class, "no image of cat"),
        (damage, "12 of 12"),
    ],
)
def test_unusable_public_images_are_refused_before_a_client_is_asked(
    place: Path, change: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(place / "public")
    monkeypatch.setattr(federation, "enroll_clients", lambda *_, **__: pytest.fail("a client was asked"))

    done = simulate(place, "run", f"evaluation.folder={place / 'public'}")

    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (place / "run").exists()


@pytest.fixture
def stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with public images that was stopped after its first round."""
    genuine = federation.run_rounds

    def interrupted(*arguments: object, **more: object) -> object:
        for result in genuine(*arguments, **more):  # type: ignore[arg-type]
            yield result
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(federation, "run_rounds", interrupted)
        assert simulate(place, "run", f"evaluation.folder={place / 'public'}").exit_code == 130
    return place


def test_resumed_run_has_the_curve_of_one_that_nobody_stopped(stopped: Path) -> None:
    assert bract("simulate", "--resume", str(stopped / "run")).exit_code == 0
    assert simulate(stopped, "whole", f"evaluation.folder={stopped / 'public'}").exit_code == 0

    curves = [[line["public_test"] for line in lines_of(stopped / run)] for run in ("run", "whole")]
    assert len(curves[0]) == 3
    assert curves[0] == curves[1]


def test_resume_is_refused_when_the_public_images_changed(stopped: Path) -> None:
    write_png(stopped / "public" / "cat" / "p1.png", 200, side=9)

    done = bract("simulate", "--resume", str(stopped / "run"))

    assert done.exit_code == 2
    assert "other pixels: cat/p1.png" in done.output


@pytest.mark.parametrize(
    "backbone", [{"model.backbone": "cnn", "data.image-size": 8}, {"model.backbone": "efficientnet_lite0"}], ids=str
)
def test_real_run_has_public_figures_and_no_other_data(
    place: Path, make_config: Callable[..., RunConfig], backbone: dict[str, Any]
) -> None:
    own = {"data.source": "clients", "data.classes": "cat,dog", "evaluation.folder": str(place / "public")}
    config = make_config(own | backbone)

    context = make_context(config)

    shape = (8, 8, 3) if config.model.backbone == "cnn" else (1280,)
    assert context.public_test is not None
    assert context.public_test(initial_arrays(config, shape, ("cat", "dog")))["examples"] == 12
    assert (context.simulated, context.evaluate, context.evaluate_by_client) == (False, None, None)


def test_public_images_that_private_clients_hold_are_refused(place: Path) -> None:
    write_png(place / "public" / "cat" / "same.png", 10, side=8)  # pixels of a photo
    folder, private = f"evaluation.folder={place / 'public'}", ("privacy.mechanism=dp-sgd", "privacy.delta=0.01")

    done = simulate(place, "run", folder, *private)

    assert done.exit_code == 2, done.output
    assert "holds 1 images that clients of this private run hold too" in done.output
    assert not (place / "run").exists()
    assert simulate(place, "open", folder).exit_code == 0, "without a mechanism nothing is hidden"
