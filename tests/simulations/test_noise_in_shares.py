"""Whole runs with noise in shares under a secure sum: the noise that is opened, what is charged, and what is refused.

Drives `client.secure.exchange`, `common.messages.secure_words`, `server.rounds.secure_rounds`.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import bract
import client.training.trainer as trainer_module
from client.training.dp_sgd import FreshStreams, PrivateStreams
from common.config.loading import defaults, override, parse
from common.errors import BractError, ConfigError, PrivacyError
from common.ledger.audit.audit import audit_ledger
from common.messages.codec import Evaluation
from common.messages.fields import CORRECT, Releases
from common.messages.secure_words import SecureWords
from common.metrics import NoisedCounts
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.noise import SecureStream
from common.secagg.noise_shares import ShareScale, values_of_sum
from common.secagg.primitives.ring import Ring
from server import federation
from server.aggregation.summed_steps import SummedSteps
from server.audit.audit import audit_run
from server.state.checkpoint import load_checkpoint
from simulations.simulate import run_job
from tests.support.inference.stored_models import shaded_images
from tests.support.secagg.ring_sums import ring_sum

ROUNDS, CLIENTS, HONEST, NOISE = 4, 5, 3, 40.0
SETTINGS: dict[str, Any] = {
    "num-clients": CLIENTS,
    "num-rounds": ROUNDS,
    "data.image-size": 32,
    "data.partitioner": "iid",
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "privacy.aggregation": "secure",
    "privacy.secure-honest": HONEST,
    "privacy.noise-multiplier": NOISE,
    "privacy.target-epsilon": "",
    "privacy.counts-noise": 30.0,
    "privacy.closing-noise": 30.0,
}


class Opened(list[np.ndarray]):
    """The noised sums that a server has opened, in units."""

    def step(self, real: Any) -> Any:
        def step(steps: SummedSteps, start: Any, words: np.ndarray, scale: ShareScale, *, num_units: int) -> Any:
            self.append(values_of_sum(words, scale))
            return real(steps, start, words, scale, num_units=num_units)

        return step


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=25)


def no_signal(patch: pytest.MonkeyPatch) -> Opened:
    """Clients with zero gradients and zero counts, so that what is opened is noise alone."""
    opened = Opened()
    real = trainer_module.head_gradient_sum
    patch.setattr(trainer_module, "head_gradient_sum", lambda *args, **more: 0.0 * real(*args, **more))
    patch.setattr(SummedSteps, "step", opened.step(SummedSteps.step))
    return opened


def test_the_opened_sums_have_the_noise_of_all_shares_and_differ(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2 and T3 on whole rounds. Shares for n and not t would be 0.77 of it, a client without noise 0.89."""
    opened = no_signal(monkeypatch)
    bract.simulate(SETTINGS | {"data.source": str(images)}, out=tmp_path / "run", quiet=True)

    assert len(opened) == ROUNDS
    noise, size = np.stack(opened), opened[0].size
    declared = NOISE * 0.1 * (1 + 1e-4) * math.sqrt(CLIENTS / HONEST)
    energy = float((noise**2).sum()) / declared**2
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    together = np.corrcoef(noise)
    assert np.abs(together - np.eye(ROUNDS)).max() < 6 / math.sqrt(size)
    check_statement(tmp_path / "run")


def check_statement(output: Path) -> None:
    stated = json.loads((output / "privacy.json").read_text())
    assert (stated["noise_shares"], stated["sampling_method"]) == (HONEST, "none: every unit is in every sum")
    assert stated["epsilon_max_alone"] > 1.5 * stated["epsilon_max"]
    assert f"while {HONEST} clients of each sum are honest" in stated["statement"]
    for client in stated["clients"].values():
        assert client["epsilon_alone"] == stated["epsilon_max_alone"]
        assert all(event["noise-shares"] == HONEST for events in client["events"].values() for event in events)
    audited = audit_run(output)
    assert audited.remarks.doubts == []
    assert audited.trust.startswith(
        f"each client adds a share of the noise; {HONEST} of {CLIENTS} clients must be honest"
    )
    for changes in ({"epsilon_max_alone": stated["epsilon_max"]}, {"clients": lighter(stated["clients"])}):
        (output / "privacy.json").write_text(json.dumps(stated | changes))
        assert any("if all others collude" in doubt for doubt in audit_run(output).remarks.doubts)
    report = audit_ledger(next(output.rglob("*.sqlite")))
    assert report.worst is not None
    assert report.worst.alone.pld == pytest.approx(stated["epsilon_max_alone"])
    assert report.as_json()["runs"][0]["alone"]["pld"] == pytest.approx(stated["epsilon_max_alone"])


class Still:
    """Bytes of zeros, so that runs can be compared to the bit."""

    def random_bytes(self, size: int) -> bytes:
        return bytes(size)


def test_a_run_that_was_stopped_twice_goes_on_with_its_momentum(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time before any round was complete, when only the checkpoint had the momentum."""
    monkeypatch.setattr(FreshStreams, "for_training", lambda _: PrivateStreams(SecureStream(), Still()))
    genuine = federation.run_rounds

    def stopped(*args: Any, **more: Any) -> Any:
        for result in genuine(*args, **more):
            if result.record.server_round == 3:
                raise KeyboardInterrupt
            yield result

    steps = {"round-retries": 0, "training.learning-rate": 0.5, "training.momentum": 0.9, "privacy.metrics": "none"}
    given = SETTINGS | steps | {"data.source": str(images), "privacy.counts-noise": "", "privacy.closing-noise": ""}
    ends = []
    for name, stops in (("whole", 0), ("stopped", 2)):
        for attempt in range(stops + 1):
            monkeypatch.setattr(federation, "run_rounds", stopped if attempt < stops else genuine)
            settings = given | {"output-dir": str(tmp_path / name), "resume": attempt > 0}
            run_job(
                parse(override(defaults(), settings)), engine="in-process", baselines=False, console=Console(quiet=True)
            )
        last = load_checkpoint(tmp_path / name)
        assert last is not None
        assert (last.facts["status"], len(last.facts["rounds"])) == ("complete", ROUNDS)
        ends.append((last.steps["momentum"].tobytes(), last.model[HEAD_WEIGHT].tobytes()))

    assert ends[0] == ends[1]
    assert audit_run(tmp_path / "stopped").remarks.doubts == []


def lighter(clients: dict[str, Any]) -> dict[str, Any]:
    return {name: client | {"epsilon_alone": 0.9 * client["epsilon_alone"]} for name, client in clients.items()}


def words_of_run() -> SecureWords:
    config = parse(override(defaults(), SETTINGS | {"round-retries": 0}))
    sizes = {f"ward-{number}": 10 for number in range(CLIENTS)}
    return SecureWords({HEAD_WEIGHT: (2, 4)}, 2, Releases.of(config), sizes, CLIENTS, config.plan(10))


def test_counts_get_their_share_of_the_noise_where_they_become_words() -> None:
    words, found = words_of_run(), list[np.ndarray]()
    exact = Evaluation(noised=NoisedCounts(np.array([7, 3])))

    for _ in range(300):
        vectors = [words.encode_counts(exact, server_round=1, name=name, stream=SecureStream()) for name in words.sizes]
        vector = np.concatenate([np.zeros(8, dtype=np.uint64), ring_sum(vectors, words.ring.word_bits)])
        summed = words.summed_counts(vector, CLIENTS, server_round=1)
        assert summed is not None
        assert summed.noised is not None
        found.append(summed.noised.cells)

    noise = np.stack(found) - [35, 15]
    energy = float((noise**2).sum()) / (30.0**2 * CLIENTS / HONEST)
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    assert abs(np.corrcoef(noise.T)[0, 1]) < 6 / math.sqrt(len(noise))
    with pytest.raises(PrivacyError, match="only with the noise of the plan"):
        words.encode_counts(exact, server_round=1, name="ward-1")


class Silent:
    """Bytes of zeros, the same noise for all."""

    def random_bytes(self, size: int) -> bytes:
        return bytes(size)


def test_the_ring_holds_each_sum_of_a_run() -> None:
    words = words_of_run()
    assert words.plan is not None
    assert words.plan.counts is not None
    # So little noise on counts needs finer steps, and more of them than the gradients have.
    finer = replace(words, plan=replace(words.plan, counts=replace(words.plan.counts, noise_stddev=1e-4)))

    assert words.ring.word_bits == words._gradient_scale.bits == 40
    assert finer._gradient_scale.bits < finer._counts_scale(CORRECT).bits == finer.ring.word_bits
    assert finer.gradient_scale.bits == finer.ring.word_bits


@pytest.mark.parametrize("bits", [40, 56])
@pytest.mark.parametrize("parts", [(4, -1, -2, -1, 0), (1, -4, 2, 1, 0)])
def test_an_opened_sum_does_not_say_how_many_clients_had_a_negative_value(parts: tuple[int, ...], bits: int) -> None:
    """Each sign has the noise of one share alone, so it would cost what a client's own share costs."""
    words, ring = words_of_run(), Ring(bits)
    # Another release of the run may need a larger ring than these have by themselves.
    vars(words)["ring"] = ring

    def opened(values: tuple[int, ...]) -> list[list[int]]:
        total = ring.zeros(8), ring.zeros(2)
        for value, name in zip(values, words.sizes, strict=True):
            counted = Evaluation(noised=NoisedCounts(np.array([value, value])))
            total[0][:] += words.encode_sum(np.full(8, 0.125 * value), name, Silent())
            total[1][:] += words.encode_counts(counted, server_round=1, name=name, stream=Silent())
        return [ring.reduced(part).tolist() for part in total]

    assert opened(parts) == opened((0,) * CLIENTS)


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        ("max-epsilon = 4.0\naccept-honest-shares = true", True),
        ("max-epsilon = 4.0", False),
        ("max-epsilon = 4.0\naccept-honest-shares = true\nmax-epsilon-alone = 3.0", False),
    ],
    ids=["believes", "believes nobody", "caps its own share"],
)
def test_a_holder_decides_which_figure_is_capped(images: Path, tmp_path: Path, lines: str, allowed: bool) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'{lines}\ndelta = 1e-5\naggregations = ["secure"]\nmetrics = ["none"]\n')
    more = {"privacy.metrics": "none", "privacy.noise-multiplier": 3.0, "privacy.policy": str(policy)}
    settings = SETTINGS | more | {"data.source": str(images), "privacy.counts-noise": "", "privacy.closing-noise": ""}

    if allowed:
        bract.simulate(settings, out=tmp_path / "run", quiet=True)
    else:
        with pytest.raises(BractError):
            bract.simulate(settings, out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.batch-size": 8}, "training.batch-size"),
        ({"training.local-epochs": 2}, "training.local-epochs"),
        ({"training.optimizer": "adamw"}, "training.optimizer"),
        ({"training.weight-decay": 0.1}, "training.weight-decay"),
        ({"training.schedule": "cosine"}, "training.schedule"),
    ],
    ids=str,
)
def test_what_one_sum_a_round_cannot_do_is_refused(images: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} does not go with privacy.aggregation='secure'"):
        bract.simulate(SETTINGS | {"data.source": str(images)} | changes, quiet=True)


def test_the_noise_is_that_of_the_accounted_honest_clients_alone() -> None:
    """Not of all five: the shares of two of them may be subtracted, or never arrive."""
    plan = words_of_run().plan
    plain = parse(override(defaults(), SETTINGS | {"privacy.aggregation": "plain"})).plan(10)

    assert plan is not None
    assert plan.counts is not None
    assert (plan.noise_shares, plan.counts.noise_shares) == (HONEST, HONEST)
    assert {event.noise_shares for event in (*plan.training_events(), *plan.counts_events())} == {HONEST}
    assert plain.noise_shares == 0
