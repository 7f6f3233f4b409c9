"""T7: many trainings by the real client, with a canary and without, and what the scores prove.

Drives `simulations.attacks.canary.bounds`, `simulations.attacks.canary.campaign_report`,
`simulations.attacks.canary.canaries`, `simulations.attacks.canary.declared_curve`,
`simulations.attacks.canary.one_run`, `simulations.attacks.canary.planted_canaries`,
`simulations.attacks.canary.plot`, `simulations.attacks.canary.power`, `simulations.attacks.canary.presets`,
`simulations.attacks.canary.trial`, `simulations.attacks.canary.view`, `simulations.harness.harness_images`,
`simulations.harness.scratch_folder`, `simulations.harness.workers`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import client.training.dp_sgd as client_training
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.noise import add_noise
from common.system.progress import no_progress
from simulations.attacks.canary.bounds import ALARM, Bounds, bounds_of
from simulations.attacks.canary.campaign import Scores, run_campaign
from simulations.attacks.canary.campaign_report import FIGURES, PICTURE, attack, of_config, of_preset
from simulations.attacks.canary.canaries import with_canary
from simulations.attacks.canary.power import smallest_seen
from simulations.attacks.canary.presets import preset_experiment
from simulations.attacks.canary.trial import AdversaryKind
from simulations.attacks.estimators.error_rates import bound_mean_error, bound_rates
from simulations.attacks.estimators.gaussian_dp import mu_lower_bound
from simulations.attacks.estimators.verdict import Verdict
from simulations.harness.harness_images import Images


def audit(name: str, folder: Path, *, trials: int, confidence: float = 0.95) -> Bounds:
    return attack(of_preset(name, trials), folder, workers=1, confidence=confidence, progress=no_progress)[0]


def weaken(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    def weaker(total: np.ndarray, *, noise_stddev: float, **rest: object) -> np.ndarray:
        return add_noise(total, noise_stddev=factor * noise_stddev, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(client_training, "add_noise", weaker)


def test_the_gate_finds_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    found = audit("gate", tmp_path / "gate", trials=1_000)

    assert found.judgement.verdict == Verdict.CONSISTENT, found.judgement.sentence
    assert found.lower > 6.0  # at 95 %: one time in twenty it is above the ledger's, and accuses nobody
    assert found.upper == pytest.approx(9.997, abs=1e-3)
    assert json.loads((tmp_path / "gate" / FIGURES).read_text())["verdict"] == "consistent"
    assert (tmp_path / "gate" / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_gate_finds_noise_that_is_seven_tenths_of_what_was_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(monkeypatch, 0.7)

    found = audit("gate", tmp_path / "gate", trials=1_000)

    assert found.judgement.verdict == Verdict.VIOLATED, found.judgement.sentence


@pytest.mark.soak
def test_single_steps_of_sampled_batches_find_weak_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken(monkeypatch, 0.3)  # so weak that likelihoods under the declared noise mislead

    found = audit("deep-sampled", tmp_path / "sampled", trials=400)

    assert found.judgement.verdict == Verdict.VIOLATED, found.judgement.sentence


@pytest.mark.parametrize("adversary", get_args(AdversaryKind))
def test_every_adversary_tells_whether_the_canary_is_in(tmp_path: Path, adversary: str) -> None:
    experiment = replace(preset_experiment("gate", tmp_path), adversary=adversary)

    inside, outside = (np.array([experiment.score(inside=each) for _ in range(20)]) for each in (True, False))

    assert inside.mean() - outside.mean() > 2 * np.sqrt((inside.var() + outside.var()) / 20)


def test_scores_along_the_canary_are_nought_without_it_and_one_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(monkeypatch, 1e-6)
    experiment = preset_experiment("gate", tmp_path)

    assert experiment.score(inside=True) == pytest.approx(1.0, abs=1e-3)
    assert experiment.score(inside=False) == pytest.approx(0.0, abs=1e-3)


def test_an_adversary_of_several_rounds_sees_the_canary_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(monkeypatch, 1e-6)
    gate = preset_experiment("gate", tmp_path)
    longer = replace(
        gate, harness=replace(gate.harness, config=gate.harness.config.model_copy(update={"num_rounds": 3}))
    )

    for adversary in ("final-model", "transcript"):
        attacked = replace(longer, adversary=adversary)
        assert attacked.score(inside=True) == pytest.approx(1.0, abs=1e-2)
        assert attacked.score(inside=False) == pytest.approx(0.0, abs=1e-2)


def test_a_campaign_goes_on_where_it_was_and_takes_no_other_scores(tmp_path: Path) -> None:
    file, done = tmp_path / "scores.jsonl", []
    make = partial(preset_experiment, "gate")
    run_campaign(make, Scores(file, "first"), 60, workers=1, advance=done.append)
    kept = file.read_text()
    file.write_text(kept + "[[60, 0.")  # a line that a kill cut short

    scores = Scores(file, "first")
    run_campaign(make, scores, 80, workers=1, advance=done.append)

    assert scores.missing(80) == []
    assert file.read_text().startswith(kept)
    assert done == [0, 50, 10, 60, 20]
    assert [len(part) for part in scores.split(80)] == [40, 40]
    for name, kept in (("scores.jsonl", file.read_text()), ("notes.txt", "mine, without an end of line")):
        (tmp_path / name).write_text(kept)
        with pytest.raises(ConfigError, match="another audit"):
            Scores(tmp_path / name, "second")
        assert (tmp_path / name).read_text() == kept


def test_canaries_are_what_they_are_called() -> None:
    rows = Images.of(np.ones((3, 4), dtype=np.float32) * [[1, 2, 0, 1]], np.array([0, 1, 2]), held_out=1)

    dirac = with_canary(rows, "dirac", num_classes=3)
    wrong = with_canary(rows, "mislabelled", num_classes=3)
    blank = with_canary(rows, "blank", num_classes=3)

    assert dirac.inputs[-1].tolist() == [0, 0, 100, 0]
    assert (len(wrong.labels), wrong.inputs[-1].tolist(), wrong.labels[-1]) == (3, [1, 2, 0, 1], 1)
    assert (blank.inputs[-1].tolist(), blank.labels[-1]) == ([0, 0, 0, 0], 2)


def test_a_canary_that_cannot_be_is_refused() -> None:
    pixels = Images.of(np.zeros((1, 4, 4, 3), dtype=np.uint8), np.array([0]), held_out=1)

    with pytest.raises(ConfigError, match="blank"):
        with_canary(pixels, "dirac", num_classes=2)
    with pytest.raises(ConfigError, match="keep some"):
        with_canary(pixels, "mislabelled", num_classes=2)


@pytest.mark.soak
def test_own_settings_are_audited_as_they_are(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    config = make_config(
        {"num-rounds": 1, "training.batch-size": 1400, "privacy.target-epsilon": 50.0, "privacy.metrics": "none"}
    )
    campaign = of_config(config, canary="dirac", adversary="final-model", images=5, trials=20)

    bounds, found, _ = attack(campaign, tmp_path / "own", workers=1, confidence=0.95, progress=no_progress)

    assert found["audit"]["privacy.target-epsilon"] == 50.0
    assert bounds.plan.num_units > 20  # the declared size, whatever is on the bench
    assert bounds.upper <= 50.0


def test_clients_that_add_no_noise_are_not_audited(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    config = make_config({"privacy.mechanism": "none"})
    campaign = of_config(config, canary="dirac", adversary="final-model", images=20, trials=40)

    with pytest.raises(ConfigError, match="bract audit membership"):
        attack(campaign, tmp_path / "own", workers=1, confidence=0.95, progress=no_progress)
    assert not (tmp_path / "own").exists()


def test_too_few_trainings_are_too_weak_to_tell(tmp_path: Path) -> None:
    found = audit("gate", tmp_path / "few", trials=20)

    assert found.judgement.verdict == Verdict.TOO_WEAK
    assert found.upper == pytest.approx(9.997, abs=1e-3)


def gate_scores(distance: float, noise_factor: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    noise = 0.5 * noise_factor * rng.standard_normal((2, 500))
    return 0.5 + distance / 2 + noise[0], 0.5 - distance / 2 + noise[1]


@pytest.mark.parametrize("distance", [1.0, 0.8])
def test_what_an_audit_says_it_could_have_seen_it_does_find(tmp_path: Path, distance: float) -> None:
    plan, rng = preset_experiment("gate", tmp_path).harness.plan, np.random.default_rng(3)

    def alarms(noise_factor: float) -> int:
        scores = (gate_scores(distance, noise_factor, rng) for _ in range(40))
        bounds = (mu_lower_bound(bound_mean_error(*each, confidence=ALARM, threshold=0.5)).mu for each in scores)
        return sum(mu > 2.0 for mu in bounds)

    scores = gate_scores(distance, 1.0, rng)
    seen = smallest_seen(*scores, plan, "final-model", bound_rates(*scores, confidence=ALARM, threshold=0.5))

    assert 0.5 < seen.noise_factor < (0.85 if distance == 1.0 else 0.7)  # a weaker attack sees less
    assert alarms(seen.noise_factor - 0.06) >= 34
    assert alarms(seen.noise_factor + 0.15) <= 6


def test_an_attack_that_sees_nothing_says_so(tmp_path: Path) -> None:
    plan = preset_experiment("gate", tmp_path).harness.plan
    scores = gate_scores(0.05, 1.0, np.random.default_rng(5))

    judged = bounds_of(*scores, plan, "final-model", threshold=0.5, confidence=0.95).judgement

    assert judged.verdict == Verdict.TOO_WEAK


def test_an_attack_on_the_model_is_refused_where_clients_send_sums(
    tmp_path: Path, make_config: Callable[..., RunConfig]
) -> None:
    config = make_config({"privacy.mechanism": "dp-statistics", "privacy.metrics": "none"})
    campaign = of_config(config, canary="dirac", adversary="black-box", images=5, trials=20)

    with pytest.raises(ConfigError, match="clients of this run send sums over features"):
        attack(campaign, tmp_path / "own", workers=1, confidence=0.95, progress=no_progress)
