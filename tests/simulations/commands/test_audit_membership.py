"""`bract audit membership`: mistakes end in one screen and exit code 2; results can be read.

Drives `simulations.attacks.membership.curves`, `simulations.attacks.membership.report`,
`simulations.attacks.membership.view`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from common.config.loading import Scalar, defaults, override
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from simulations.attacks.membership import parallel as work
from simulations.attacks.membership.curves import curves_of
from simulations.attacks.membership.report import Found, judge, verdict
from simulations.attacks.membership.training import Scored
from simulations.attacks.membership.view import show_membership
from simulations.commands.audit_membership import MEMBERSHIP_HELP, membership_command

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command("membership", help=MEMBERSHIP_HELP)(membership_command)


def membership(*arguments: str) -> Result:
    return CliRunner().invoke(APP, list(arguments), env={"COLUMNS": "200"})


def found_of(compare: str, *, leak: float, models: int = 32, images: int = 1500) -> Found:
    rng = np.random.default_rng(0)
    (curve,) = curves_of(override(defaults(), {}), compare)
    members = rng.random((models, images)) < 0.5
    scores = rng.standard_normal((models, images)) + leak * members
    return judge(curve, [Scored(row, 0.9, 1.0) for row in scores], members)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--compare", "none,eight"], ["'eight'", "none,8,2,1"]),
        (["--compare", "none,8,8.0"], ["none twice"]),
        (["--compare", ""], ["name at least one"]),
        (["--compare", "0"], ["privacy.target-epsilon", "greater than 0"]),
        (["--compare", "nan"], ["privacy.target-epsilon", "nan"]),
        (["--models", "3"], ["--models", "8"]),
        (["--workers", "0"], ["--workers"]),
        (["--set", "privacy.target-epsilon=3"], ["--compare none,3"]),
        (["--set", "privacy.noise-multiplier=3"], ["--compare"]),
        (["--set", "privacy.unit=group"], ["privacy.unit"]),
        (["--set", "stopping.patience=3"], ["stopping.patience"]),
        (["--set", "data.alhpa=1"], ["did you mean 'data.alpha'"]),
        (["--set", "data.source=clients"], ["lie at clients"]),
        (["--set", "data.source=/no/such"], ["/no/such"]),
        (["--set", "strategy.name=Krum", "--set", "num-clients=2"], ["at least 3 clients"]),
        (["--set", "model.personal=head", "--set", "model.tuning=norm"], ["model.personal"]),
        (["--seed", "1", "--set", "seed=2"], ["twice"]),
        (["--set", "privacy.delta=0.5"], ["privacy.delta=0.5"]),
        (["--config", "/no/such.toml"], ["/no/such.toml"]),
    ],
)
def test_membership_explains_a_mistake_and_trains_nothing(
    arguments: list[str], fragments: list[str], tmp_path: Path, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "train_and_score", None)

    result = membership("--out", str(tmp_path / "out"), *arguments)

    assert result.exit_code == 2, result.output
    said = result.output + (result.stderr or "")
    assert all(fragment in said for fragment in fragments), said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_membership_prints_json_of_what_it_wrote(
    tmp_path: Path, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretends(config: RunConfig, model: int, **_: RunConfig) -> Scored:
        rng = np.random.default_rng(model)
        return Scored(rng.standard_normal(1452) + model, 0.9, 1.0)

    monkeypatch.setattr(work, "train_and_score", pretends)

    short = ("--set", "num-clients=1", "--set", "num-rounds=1", "--compare", "none,4,1.5")
    result = membership("--out", str(tmp_path / "out"), "--models", "8", "--workers", "1", "--json", *short)

    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "out" / "membership.json").read_text())
    assert [curve["name"] for curve in printed["curves"]] == ["none", "dp-sgd-4", "dp-sgd-1.5"]
    assert [curve["epsilon_of_one_image"] for curve in printed["curves"]] == [None, 4, 1.5]


def test_curves_under_client_dp_count_a_replaced_image_as_two_clients() -> None:
    changed: dict[str, Scalar] = {"privacy.mechanism": "client-dp", "privacy.delta": 1e-3}

    (curve,) = curves_of(override(defaults(), changed), "2")

    assert (curve.name, curve.label) == ("client-dp-2", "epsilon 2 a client")
    assert (curve.epsilon, curve.delta) == (4, pytest.approx((1 + np.exp(2)) * 1e-3))


def test_verdict_says_what_was_found() -> None:
    assert "no better than guessing" in verdict(found_of("1", leak=0.0))
    assert "times what guessing would" in verdict(found_of("none", leak=2.0))
    assert "MORE than epsilon allows" in verdict(found_of("1", leak=3.0))
    assert "too few images to tell" in verdict(found_of("none", leak=0.0, models=8, images=100))


def test_show_membership_can_be_read_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_membership([found_of("none", leak=2.0), found_of("8", leak=0.1)], Console(width=80))

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("no privacy", "epsilon 8", "guessing", "found at 0.1 %", "anything", "not proven safe"):
        assert word in " ".join(shown.split())
