"""Real federations under attack: what they share with real runs, what leaks, and going on after a stop.

Drives `simulations.attacks.membership.federation`, `simulations.attacks.membership.parallel`,
`simulations.attacks.membership.score_store`, `simulations.attacks.membership.targets`,
`simulations.attacks.membership.training`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from client.training.trainer import Trainer
from common.config.loading import Scalar, defaults, override
from common.config.schema import RunConfig
from common.data.client_dataset import shard
from common.data.preprocessing import Prepared
from common.errors import ConfigError, FederationError
from simulations.attacks.membership import parallel as work
from simulations.attacks.membership import training
from simulations.attacks.membership.curves import Curve, curves_of
from simulations.attacks.membership.federation import federate
from simulations.attacks.membership.lira import likelihood_ratios
from simulations.attacks.membership.report import Found
from simulations.attacks.membership.roc import auc_of
from simulations.attacks.membership.run_attack import attack
from simulations.attacks.membership.score_store import ScoreStore
from simulations.attacks.membership.targets import Population, members_of, populate
from simulations.attacks.membership.training import Scored, train_and_score
from simulations.simulate import run_job

MakeConfig = Callable[..., RunConfig]
MODELS = 10
# Long enough at each client to learn its images by heart.
SHORT: dict[str, Scalar] = {
    "num-rounds": 2,
    "training.local-epochs": 30,
    "num-clients": 3,
    "data.partitioner": "iid",
}
OPEN = SHORT | {"privacy.mechanism": "none"}


def curves(compare: str, changed: dict[str, Scalar] | None = None) -> tuple[Curve, ...]:
    return curves_of(override(defaults(), SHORT | (changed or {})), compare)


@pytest.fixture(scope="module")
def population(make_config: MakeConfig, digits: Prepared) -> Population:
    return populate(make_config(OPEN))


@pytest.fixture(scope="module")
def leaky(digits: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, np.ndarray, Path]:
    """The attack on a run without privacy, its scores, and its folder."""
    folder = tmp_path_factory.mktemp("attack") / "out"
    done = attack(curves("none"), folder, models=MODELS)
    scores = np.array([ScoreStore(folder).get("none", number).scores for number in range(MODELS)])
    return done.results[0], scores, folder


@pytest.mark.parametrize(("strategy", "bits"), [("FedAvg", 32), ("FedAdam", 8), ("QFedAvg", 32), ("FedAvg", 0)])
def test_federate_gives_the_model_that_a_run_gives(
    strategy: str, bits: int, make_config: MakeConfig, population: Population, tmp_path: Path
) -> None:
    settings: dict[str, Scalar] = {"training.local-epochs": 2, "client-fraction": 0.7, "strategy.name": strategy}
    # No bits of an update stand for a head from sums.
    settings |= {"training.update-bits": bits} if bits else {"training.method": "statistics"}
    config = make_config(OPEN | settings | {"output-dir": str(tmp_path / "run")})
    run_job(config, engine="in-process", baselines=False, console=Console(quiet=True))

    prepared = population.prepared
    trained = federate(
        Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes), prepared, population.partition
    )

    ran = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert trained.keys() == ran.keys()
    assert all((trained[name] == ran[name]).all() for name in ran)


@pytest.mark.parametrize("mechanism", ["none", "dp-statistics"])
def test_all_curves_of_a_head_from_sums_are_of_sums(mechanism: str) -> None:
    found = curves("none,2", {"training.method": "statistics", "privacy.mechanism": mechanism})

    assert [curve.config.takes_statistics for curve in found] == [True, True]
    assert [curve.name for curve in found] == ["none", "dp-statistics-2"]
    assert not curves("none")[0].config.takes_statistics


def test_without_takes_images_out_and_leaves_declared_sizes(population: Population) -> None:
    members = members_of(0, 3, len(population.targets))

    partition = population.without(members)

    assert (partition.num_units == population.partition.num_units).all()
    assert 0.4 < members.mean() < 0.6
    for who in range(3):
        before, after = (
            shard(population.prepared, dealt, who, private=True) for dealt in (population.partition, partition)
        )
        mine = population.partition.owner[population.targets] == who
        left_out = population.prepared.scan.digests[population.targets[mine & ~members]]
        assert len(after.train_labels) == len(before.train_labels) - len(left_out)
        assert not {row.tobytes() for row in left_out} & {row.tobytes() for row in after.train_digests}
        assert after.num_units == before.num_units
        assert (after.test_inputs == before.test_inputs).all()


def test_targets_are_what_clients_train_on_and_have_no_copies(population: Population) -> None:
    prepared, partition, targets = population.prepared, population.partition, population.targets

    assert prepared.scan.usable[targets].all()
    assert not partition.held_out[targets].any()
    assert len(np.unique(prepared.scan.digests[targets], axis=0)) == len(targets)
    assert len(targets) > 1_400


def test_coins_differ_between_models_and_repeat() -> None:
    first, again, second = members_of(0, 0, 4000), members_of(0, 0, 4000), members_of(0, 1, 4000)

    assert (first == again).all()
    assert abs((first == second).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_attack_finds_members_of_a_run_without_privacy(leaky: tuple[Found, np.ndarray, Path]) -> None:
    found = leaky[0]

    assert found.auc > 0.5 + 10 * found.auc_stddev
    assert found.rates[1].low > 3 * 0.01
    assert found.beyond_chance
    assert 0.8 < found.accuracy < 1


def test_attack_finds_nothing_with_other_models_bits(leaky: tuple[Found, np.ndarray, Path]) -> None:
    scores = leaky[1]
    wrong = np.array([members_of(1, number, scores.shape[1]) for number in range(MODELS)])

    auc, stddev = auc_of(likelihood_ratios(scores, wrong).ravel(), wrong.ravel())

    assert abs(auc - 0.5) < 3 * stddev


def test_attack_goes_on_where_it_was_and_finds_the_same(
    leaky: tuple[Found, np.ndarray, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def stops(config: RunConfig, model: int, **more: RunConfig) -> Scored:
        if model == 7 and len(trained) < 8:
            trained.append(-1)
            raise KeyboardInterrupt
        trained.append(model)
        return train_and_score(config, model, **more)

    monkeypatch.setattr(work, "train_and_score", stops)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        attack(curves("none"), folder, models=MODELS)

    done = attack(curves("none"), folder, models=MODELS)

    assert trained == [*range(7), -1, *range(7, MODELS)]
    assert done.trained == MODELS - 7
    assert (done.results[0].roc.hits == leaky[0].roc.hits).all()
    assert {file.name for file in folder.iterdir()} == {"settings.json", "scores", "membership.json", "membership.png"}


def test_attack_under_dp_draws_fresh_noise_and_stays_within_epsilon(digits: Prepared, tmp_path: Path) -> None:
    (curve,) = curves("1", {"num-rounds": 1, "training.local-epochs": 1})
    again = train_and_score(curve.config, 0)

    done = attack((curve,), tmp_path / "out", models=8)

    assert (ScoreStore(tmp_path / "out").get("dp-sgd-1", 0).scores != again.scores).all()
    assert done.results[0].within
    assert done.results[0].rates[1].limit == pytest.approx(0.01 * np.e + 1e-5)


def test_attack_leaves_figures_that_say_what_was_attacked(leaky: tuple[Found, np.ndarray, Path]) -> None:
    found = json.loads((leaky[2] / "membership.json").read_text())

    assert (found["models"], found["images"], found["simulation_only"]) == (MODELS, leaky[1].shape[1], True)
    (curve,) = found["curves"]
    assert curve["members"] + curve["others"] == leaky[1].size
    assert curve["epsilon_of_one_image"] is None
    assert curve["config"]["privacy.mechanism"] == "none"
    assert [rate["fpr"] for rate in curve["rates"]] == [0.001, 0.01]
    assert (leaky[2] / "membership.png").read_bytes().startswith(b"\x89PNG")


def test_attack_refuses_scores_of_other_settings_and_files_of_others(
    leaky: tuple[Found, np.ndarray, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"num-rounds was 2 and is 9"):
        attack(curves("none", {"num-rounds": 9}), leaky[2], models=MODELS)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="in use"):
        attack(curves("none"), tmp_path, models=MODELS)


def test_attack_explains_a_damaged_file(leaky: tuple[Found, np.ndarray, Path], tmp_path: Path) -> None:
    store = ScoreStore.open(tmp_path / "out", {}, "digest")
    store.put("none", 0, Scored(np.zeros(3), 0.5, 1.0))
    file = tmp_path / "out" / "scores" / "none" / "00000.npz"
    file.write_bytes(file.read_bytes()[:40])

    with pytest.raises(ConfigError, match="damaged"):
        store.get("none", 0)


def test_train_and_score_refuses_a_model_that_diverged(digits: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "federate", lambda *_: {"head.weight": np.full((10, 1280), np.nan, np.float32)})

    with pytest.raises(FederationError, match="diverged"):
        train_and_score(curves("none")[0].config, 0)


@pytest.mark.slow
def test_attack_finds_the_same_with_two_workers(leaky: tuple[Found, np.ndarray, Path], tmp_path: Path) -> None:
    attack(curves("none"), tmp_path / "out", models=8, workers=2)

    for number in range(8):
        assert (ScoreStore(tmp_path / "out").get("none", number).scores == leaky[1][number]).all()
