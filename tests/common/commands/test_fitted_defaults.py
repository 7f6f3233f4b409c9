"""Defaults that give way to small sources, and written settings that do not."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bract import app
from common.commands import fitted_defaults
from common.commands.fitted_defaults import fit_to_sizes, fit_to_source
from common.config.loading import Scalar, defaults, override, parse
from common.errors import ConfigError
from tests.support.clients.own_clients import write_images

MECHANISMS = ("dp-sgd", "none", "client-dp")


def bract(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def settings_of(folder: Path, **given: Scalar) -> dict[str, Scalar]:
    return {"data.source": str(folder)} | {key.replace("__", ".").replace("_", "-"): v for key, v in given.items()}


def options_of(settings: dict[str, Scalar]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(name="pictures", params=[2, 10])
def pictures_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    return request.param, write_images(tmp_path / "images", range(request.param))


@pytest.mark.parametrize("num_clients", [None, 2])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_default_refuses_a_small_folder(
    pictures: tuple[int, Path], tmp_path: Path, mechanism: str, num_clients: int | None
) -> None:
    count, folder = pictures
    settings = settings_of(folder, privacy__mechanism=mechanism, model__backbone="cnn")
    settings |= {} if num_clients is None else {"num-clients": num_clients}

    dry = bract("simulate", "--dry-run", *options_of(settings))
    plan = bract("plan", *options_of(settings)) if mechanism != "none" else dry
    run = bract("simulate", "--quiet", "--out", tmp_path / "run", *options_of(settings | {"num-rounds": 1}))

    for result in (dry, plan, run):
        assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["clients"] == min(count, num_clients or 5)
    assert summary["config"]["training.batch-size"] == ""  # a folder that grows later gets the default


def test_a_cached_head_runs_on_two_images_at_two_clients(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", range(2))

    run = bract("simulate", "--out", tmp_path / "run", *options_of(settings_of(folder, num_clients=2, num_rounds=1)))

    assert run.exit_code == 0, run.output


@pytest.mark.parametrize("command", [("simulate", "--dry-run"), ("simulate", "--quiet"), ("plan",)])
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"training__batch_size": 64}, "training.batch-size=64 but there are only 10"),
        ({"num_clients": 11}, "num-clients=11 but there are only 10 training images"),
        ({"data__min_client_size": 6, "num_clients": 2}, "num-clients=2 but there are only 10 training images"),
        ({"num_clients": 8, "data__alpha": 0.01}, "data.alpha=0.01 found no split"),
        ({"num_clients": 2, "min_clients": 3}, "min-clients=3 but a round has only 2"),
        ({"privacy__delta": 0.5}, "privacy.delta=0.5 must be below 1 / images of a client"),
    ],
)
def test_what_the_user_wrote_is_refused_by_its_name(
    tmp_path: Path, command: tuple[str, ...], written: dict[str, Scalar], said: str
) -> None:
    folder = write_images(tmp_path / "images", range(10))

    result = bract(*command, *options_of(settings_of(folder, model__backbone="cnn", **written)))

    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("option", ["--dry-run", "--quiet"])
def test_a_folder_of_one_class_is_refused_because_no_setting_can_help(tmp_path: Path, option: str) -> None:
    folder = write_images(tmp_path / "images", range(0, 10, 2))

    result = bract("simulate", option, *options_of(settings_of(folder, model__backbone="cnn")))

    assert result.exit_code == 2
    assert "the usable training images are of 1 class, dark: a classifier needs at least two" in result.output


def fitted(settings: dict[str, Scalar]) -> dict[str, Scalar]:
    changed, lines = fit_to_source(settings)
    changes = {key: value for key, value in changed.items() if settings.get(key) != value}
    assert len(lines) >= bool(changes)
    parse(override(defaults(), changed))
    return changes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_clients": 2}, {}),
        ({"num_clients": 2, "training__batch_size": 4}, {}),
        ({"data__min_client_size": 4, "training__batch_size": 4}, {"num-clients": 2}),
        ({"num_clients": 9, "training__batch_size": 4}, {"data.partitioner": "iid"}),
        ({"num_clients": 9, "training__batch_size": 4, "data__partitioner": "dirichlet"}, None),
        (
            {"num_clients": 4, "training__batch_size": 4, "strategy__name": "FedTrimmedAvg"},
            {"strategy.trim-fraction": 0.25},
        ),
        (
            {"num_clients": 3, "training__batch_size": 4, "strategy__name": "FedTrimmedAvg"},
            {"strategy.trim-fraction": 0.3334},
        ),
    ],
)
def test_only_what_nobody_wrote_gives_way(
    tmp_path: Path, given: dict[str, Scalar], expected: dict[str, Any] | None
) -> None:
    changes = fitted(settings_of(write_images(tmp_path / "images", range(10)), model__backbone="cnn", **given))

    # A written partitioner stays, and its own setting gives way.
    assert changes == expected or (expected is None and "data.partitioner" not in changes)


def test_natural_clients_are_as_many_as_the_source_names(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", range(30))
    rows = [
        f"{file},{file.parent.name},ward {number % 3}" for number, file in enumerate(sorted(folder.glob("*/*.png")))
    ]
    manifest = tmp_path / "images.csv"
    manifest.write_text("\n".join(["path,label,client", *rows]) + "\n")

    changes = fitted(settings_of(manifest, data__partitioner="natural", training__batch_size=4))

    assert changes == {"num-clients": 3}


def test_delta_gives_way_to_declared_units_and_clients() -> None:
    local, lines = fit_to_sizes({"num-clients": 2}, (99_999, 150_000))
    small, none = fit_to_sizes({"num-clients": 1}, (99_999,))
    at_limit, _ = fit_to_sizes({"num-clients": 1}, (100_000,))
    central, _ = fit_to_sizes({"num-clients": 200_000, "privacy.mechanism": "client-dp"})
    written, _ = fit_to_sizes({"num-clients": 1, "privacy.delta": 1e-5}, (150_000,))

    assert (local["privacy.delta"], len(lines)) == (1e-6, 1)
    assert parse(override(defaults(), local)).plan(150_000).delta == 1e-6
    assert ("privacy.delta" in small, none) == (False, [])
    assert central["privacy.delta"] == at_limit["privacy.delta"] == 1e-6
    with pytest.raises(ConfigError, match="must be below 1 / images of a client"):
        parse(override(defaults(), written)).plan(150_000)


def test_a_known_source_is_not_opened_for_a_usual_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.commands.fitted_defaults.open_source", pytest.fail)

    assert fit_to_source({"num-clients": 10}) == ({"num-clients": 10}, [])


def test_a_known_source_is_opened_for_more_clients_than_it_may_have_images() -> None:
    opened = []

    with pytest.raises(ZeroDivisionError):
        fit_to_source({"num-clients": 51}, lambda data: opened.append(data) or 1 / 0)  # type: ignore[func-returns-value]
    assert opened[0].source == defaults()["data.source"]


@pytest.mark.parametrize(("count", "tried"), [(39, True), (40, False)])
def test_no_split_is_tried_where_images_are_ample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, tried: bool
) -> None:
    calls = []
    real = fitted_defaults.client_sizes
    monkeypatch.setattr(fitted_defaults, "client_sizes", lambda *given, **more: calls.append(1) or real(*given, **more))

    fit_to_source(
        settings_of(write_images(tmp_path / "images", range(count)), num_clients=2, data__partitioner="dirichlet")
    )

    assert bool(calls) is tried
