"""`bract plan` as a user meets it: a table, JSON, a picture, and mistakes of one screen.

Drives `common.data.partitioning.client_sizes`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bract import app
from common.config.schema import RunConfig
from common.data.partitioning.client_sizes import client_sizes, read_sizes
from common.data.sources.base_source import Entries
from common.data.sources.registry import open_source
from common.errors import ConfigError, WeightsError
from common.system.console import format_epsilon

# Every unit in every batch, and few rounds: quick to account for.
QUICK = ("--noise", "4", "--rounds", "3", "--epochs", "1")
SIZES = ("--sizes", "30,50,50")


def plan(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": str(columns)})


def facts_of(*arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("columns", [80, 120])
def test_plan_prints_one_table_that_fits_the_screen(columns: int) -> None:
    done = plan(*SIZES, *QUICK, "--parameters", "640", columns=columns)

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    said = " ".join(done.stdout.split())
    for words in (
        "unit image, noise as set, delta 1e-05",
        "Images of a client 30 50",
        "clients of this size 1 2",
        "noise multiplier 4 4",
        "add/remove one unit (zero-out)",
        "dp-accounting PLD",
        "640 trained parameters",
        "epsilon with 10 % more noise",
    ):
        assert words in said, done.stdout


def test_plan_table_and_json_tell_the_same_figures() -> None:
    facts = facts_of(*SIZES, *QUICK, "--parameters", "640")
    said = " ".join(plan(*SIZES, *QUICK, "--parameters", "640").stdout.split())

    small, large = facts["sizes"]
    assert f"epsilon after 3 rounds {format_epsilon(small['epsilon'])} {format_epsilon(large['epsilon'])}" in said
    assert f"the whole plan by RDP {format_epsilon(small['epsilon_rdp'])}" in said
    assert f"at most {facts['signal_to_noise_a_round']:.3g} x as long as the noise" in said
    assert f"epsilon {format_epsilon(facts['held_out_units']['epsilon'])}, RDP" in said


def test_plan_options_are_the_settings_of_a_run() -> None:
    options = ("--epsilon", "3", "--delta", "1e-6", "--rounds", "2", "--epochs", "5", "--batch-size", "99")

    facts = facts_of("--sizes", "60,60", *options, "--set", "client-fraction=0.5")

    expected = {
        "privacy.target-epsilon": 3.0,
        "privacy.noise-multiplier": "",
        "privacy.delta": 1e-6,
        "num-rounds": 2,
        "training.local-epochs": 5,
        "training.batch-size": 99,
        "num-clients": 2,
        "client-fraction": 0.5,
    }
    assert {key: facts["config"][key] for key in expected} == expected
    assert (facts["sizes"][0]["num_rounds"], facts["sizes"][0]["steps_per_round"]) == (1, 5)


def test_plan_lets_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("num-rounds = 9\n[privacy]\ntarget-epsilon = 1.0\n[training]\nlocal-epochs = 1\n")

    config = facts_of(*SIZES, "--config", str(file), "--noise", "4", "--rounds", "2")["config"]

    assert (config["num-rounds"], config["training.local-epochs"]) == (2, 1)
    assert (config["privacy.noise-multiplier"], config["privacy.target-epsilon"]) == (4.0, "")


def test_plan_counts_the_sizes_that_a_run_would_deal(make_config: Callable[..., RunConfig]) -> None:
    config = make_config({"data.partitioner": "iid", "num-clients": 7})
    sizes, _ = client_sizes(open_source(config.data).entries, config.data, num_clients=7, seed=config.seed)

    facts = facts_of(
        *("--set", "data.partitioner=iid", "--set", "num-clients=7", "--set", "model.backbone=cnn"),
        *(*QUICK, "--batch-size", "1797"),
    )

    found = {row["num_units"]: row["num_clients"] for row in facts["sizes"]}
    assert found == dict(zip(*np.unique(sizes, return_counts=True), strict=True))
    assert sum(size * count for size, count in found.items()) == 1797
    assert facts["trained_parameters"] is None


@pytest.mark.parametrize(
    ("more", "parameters"),
    [((), None), (("--classes", "7"), 700), (("--set", "data.classes=a,b,c"), 300), (("--parameters", "5"), 5)],
)
def test_plan_counts_parameters_only_from_what_was_said(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], parameters: int | None
) -> None:
    monkeypatch.setattr("common.models.backbone_info.backbone_info", lambda _: SimpleNamespace(num_features=100))

    assert facts_of(*SIZES, *QUICK, *more)["trained_parameters"] == parameters


def test_plan_counts_parameters_of_a_head_for_the_classes_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.models.backbone_info.backbone_info", lambda _: SimpleNamespace(num_features=100))

    facts = facts_of("--set", "privacy.mechanism=client-dp", "--set", "num-clients=3000", *QUICK[:4])

    assert facts["trained_parameters"] == 1000
    assert (facts["sizes"][0]["num_units"], facts["privacy_unit"]) == (3000, "client")


@pytest.mark.parametrize(
    ("kind", "values"), [("second-moments", 1280 * 1281 // 2 + 12_800), ("class-means", 12_800 + 10)]
)
def test_plan_counts_the_values_of_sums_that_carry_noise(
    monkeypatch: pytest.MonkeyPatch, kind: str, values: int
) -> None:
    monkeypatch.setattr("common.models.backbone_info.backbone_info", lambda _: SimpleNamespace(num_features=1280))
    once = (*SIZES, "--noise", "2", "--set", "privacy.mechanism=dp-statistics", "--classes", "10")

    facts = facts_of(*once, "--set", f"training.statistics={kind}")

    assert facts["noised_values"] == values
    assert "trained_parameters" not in facts
    # One client's sum of unit vectors in one direction against the noise of all values.
    (first, *_) = facts["sizes"]
    assert first["signal_to_noise_a_step"] == pytest.approx(first["num_units"] / (2 * math.sqrt(values)), rel=1e-3)
    said = " ".join(plan(*once, "--set", f"training.statistics={kind}").stdout.split())
    assert f"({values:,} values of the sums)" in said


@pytest.mark.parametrize(
    ("more", "advice"),
    [((), "--classes N"), (("--classes", "7"), "not on this machine"), (("--set", "model.head=mlp"), "--parameters N")],
)
def test_plan_says_what_to_pass_where_signal_is_left_out(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], advice: str
) -> None:
    def missing(_: RunConfig) -> None:
        raise WeightsError("no network")

    monkeypatch.setattr("common.models.backbone_info.backbone_info", missing)

    done = plan(*SIZES, *QUICK, *more)

    said = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "signal / noise" not in said
    assert advice in said


@pytest.mark.parametrize(
    ("more", "shown"), [((), "clip bound, by rule 2.04"), (("--set", "privacy.clipping-norm=3"), "")]
)
def test_plan_shows_a_clip_bound_that_follows_from_the_rule(more: tuple[str, ...], shown: str) -> None:
    central = ("--set", "privacy.mechanism=client-dp", "--set", "num-clients=40", "--noise", "5", "--parameters", "9")

    said = " ".join(plan(*central, *more).stdout.split())

    assert shown in said
    assert ("clip bound, by rule" in said) == bool(shown)
    assert f"as long as the clip bound {2.04 if shown else 3:g}" in said


def test_plan_says_how_many_sizes_it_knows_and_shows() -> None:
    done = plan("--sizes", "10,20,30,40,50,60,70", *QUICK, "--set", "num-clients=9")

    said = " ".join(done.stdout.split())
    assert "the sizes of 7 are known, the others are assumed to be similar" in said
    assert "the table shows 5 of 7 different sizes" in said


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ((*SIZES, "--delta", "0.02"), ["privacy.delta=0.02", "1/50"]),
        (("--sizes", "30", "--batch-size", "64"), ["training.batch-size=64", "only 30 training images"]),
        (("--sizes", "64", "--epsilon", "0.00001"), ["target-epsilon", "cannot be met"]),
        ((*SIZES, "--epsilon", "8", "--noise", "2"), ["not both"]),
        ((*SIZES, "--epsilon", "8", "--set", "privacy.noise-multiplier=2"), ["not both"]),
        ((*SIZES, "--rounds", "8", "--set", "num-rounds=9"), ["--rounds", "num-rounds", "twice"]),
        ((*SIZES, "--set", "num-clients=2"), ["names 3 clients", "num-clients=2"]),
        ((*SIZES, "--set", "privacy.mechanism=none"), ["nothing to plan"]),
        ((*SIZES, "--epsilon", "nan"), ["privacy.target-epsilon"]),
        ((*SIZES, "--noise", "-1"), ["privacy.noise-multiplier", "greater than 0"]),
        ((*SIZES, "--plot", "plan.pdf"), ["ending in .png"]),
        (("--sizes", "30,x"), ["'x' is not a size"]),
        (("--set", "data.source=/no/such/folder"), ["no such folder"]),
    ],
)
def test_plan_explains_a_mistake_on_one_screen(arguments: tuple[str, ...], fragments: list[str]) -> None:
    done = plan(*arguments, columns=200)

    assert done.exit_code == 2, done.output
    assert all(fragment in done.stderr for fragment in fragments), done.stderr
    assert "Traceback" not in done.output
    assert not done.stdout.strip()


def test_plan_draws_a_picture_and_keeps_json_alone_on_stdout(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"

    facts = facts_of(*SIZES, "--rounds", "2", "--epochs", "1", "--plot", str(file))

    assert len(facts["sizes"]) == 2
    with Image.open(file) as drawn:
        assert drawn.format == "PNG"
        assert 700 <= drawn.size[0] <= 1500
        assert 400 <= drawn.size[1] <= 1000
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("text", ["", "0", "3,", "3,,4", "-3", "3.5", "1e3", "x", "٣", "0x10", "1_000", "9" * 13])
def test_read_sizes_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--sizes"):
        read_sizes(text)


def test_client_sizes_count_groups_where_groups_are_protected(make_config: Callable[..., RunConfig]) -> None:
    settings = {"data.partitioner": "iid", "num-clients": 2, "data.min-client-size": 1}
    units = ("ann", "ann", "ann", "bob", "bob", "", "", "eve")
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1])
    entries = Entries(images=None, labels=labels, num_train=7, classes=("a", "b"), units=units)  # type: ignore[arg-type]
    data = make_config(settings).data

    images, _ = client_sizes(entries, data, num_clients=2, seed=0)
    groups, unused = client_sizes(entries, data, num_clients=2, seed=0, unit="group")

    assert (images.sum(), groups.sum(), unused) == (7, 4, 0)
