"""Trials follow a run's own functions, so that they err where a run would.

Drives `simulations.advice.trial`.
"""

import dataclasses

import numpy as np
import pytest

from client.training.dp_sgd import PrivateStreams, train_head_privately
from client.training.round_settings import settings_of
from client.training.statistics import private_statistics
from common.config.loading import Scalar
from common.models.linear_head import HEAD_WEIGHT
from server.aggregation.statistics_head import head_solver
from simulations.advice import trial
from simulations.advice.candidates import Candidate, candidates
from simulations.advice.features import TASKS
from simulations.advice.federation import SizeGroup, SyntheticFederation
from simulations.commands.advice_view import reason_of
from simulations.harness.harness_streams import Repeated, Silent

GROUP = SizeGroup(1, 240)


def federation(group: SizeGroup = GROUP, *, most_rows: int = 10_000) -> SyntheticFederation:
    return SyntheticFederation(
        TASKS[1], [group], num_classes=4, num_features=24, most_rows=most_rows, rng=np.random.default_rng(0)
    )


def choice(
    name: str, *, noise: float | None = None, clients: int = 4, units: int = 240, epsilon: float = 4.0
) -> Candidate:
    given: dict[str, Scalar] = {"num-clients": clients, "privacy.target-epsilon": epsilon, "num-rounds": 30}
    group = SizeGroup(clients, units // clients)
    found = {candidate.name: candidate for candidate in candidates(given, [group])[0]}[name]
    if noise is None:
        return found
    plans = tuple(dataclasses.replace(plan, noise_multiplier=noise) for plan in found.plans)
    return dataclasses.replace(found, plans=plans)


def heads_of(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Collect every head that is asked for its error."""
    seen: list[np.ndarray] = []
    whole = SyntheticFederation.error_of
    monkeypatch.setattr(
        SyntheticFederation, "error_of", lambda self, head: seen.append(head[HEAD_WEIGHT]) or whole(self, head)
    )
    return seen


def test_own_steps_are_those_of_a_client_that_holds_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fed = heads_of(monkeypatch), federation()
    # One client, so that its steps between two models are nobody else's.
    given: dict[str, Scalar] = {"num-clients": 1, "min-clients": 0, "num-rounds": 3}
    found = {candidate.name: candidate for candidate in candidates(given, [GROUP])[0]}["dp-sgd, 3 rounds"]
    quiet = dataclasses.replace(found, plans=(dataclasses.replace(found.plans[0], noise_multiplier=1e-9),))

    trial.error_of_trial(quiet, fed, np.random.default_rng(0))

    head = fed.initial_head()
    for number in (1, 2, 3):
        settings = settings_of(found.config, server_round=number, plan=quiet.plans[0])
        silent = PrivateStreams(Repeated("sampling", []), Silent())
        head = train_head_privately(head, fed.features, fed.labels, quiet.plans[0], settings, silent)
    assert seen[-1] == pytest.approx(head[HEAD_WEIGHT], rel=1e-3, abs=1e-3)


def test_statistics_give_the_head_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fed, found = heads_of(monkeypatch), federation(), choice("dp-statistics, 1 round", noise=1e-9)

    trial.error_of_trial(found, fed, np.random.default_rng(0))

    plan, streams = found.plans[0], PrivateStreams(Repeated("sampling", []), Silent())
    sums = private_statistics(
        "second-moments", fed.features, fed.labels, 4, plan, streams, units=np.arange(len(fed.labels))
    )
    head = head_solver("second-moments", {"a": 240}, {"a": 0.0})(["a"], [sums])
    assert seen[-1] == pytest.approx(head[HEAD_WEIGHT], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["dp-sgd, 30 rounds", "dp-sgd, secure, 30 rounds", "dp-statistics, 1 round"])
def test_more_noise_makes_more_errors(name: str) -> None:
    fed = federation(SizeGroup(4, 60))

    def error(noise: float) -> float:
        return trial.error_of_trial(choice(name, noise=noise), fed, np.random.default_rng(1))

    assert error(0.05) + 0.1 < error(300.0)


def test_noise_in_shares_of_many_clients_beats_noise_of_each() -> None:
    """Twenty clients add sqrt(20) times the noise of one, or little more than one."""
    fed = federation(SizeGroup(20, 60))
    names = ("dp-sgd, 30 rounds", "dp-sgd, secure, 30 rounds")
    own, shared = (choice(name, clients=20, units=1_200, epsilon=2.0) for name in names)

    assert own.noise_of_sum(20) > 2.5 * shared.noise_of_sum(20)
    rng = np.random.default_rng
    assert trial.error_of_trial(shared, fed, rng(2)) < trial.error_of_trial(own, fed, rng(2))


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_updates_of_whole_clients_learn_and_noise_spoils_them(
    aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation(SizeGroup(60, 4))
    given: dict[str, Scalar] = {"num-clients": 60, "num-rounds": 30}
    both = {
        found.config.privacy.aggregation: found for found in candidates(given, fed.groups)[0] if "client" in found.name
    }
    central = both[aggregation]
    assert "hides a whole client among 60" in reason_of(central, 240)
    # No step along a sum of images' gradients, which nothing clips here.
    monkeypatch.setattr(SyntheticFederation, "gradient_sums", None)

    def error(noise: float) -> float:
        plan = dataclasses.replace(central.plans[0], noise_multiplier=noise)
        return trial.error_of_trial(dataclasses.replace(central, plans=(plan,)), fed, np.random.default_rng(3))

    assert error(1e-6) < 0.3
    assert error(1e-6) + 0.1 < error(1_000.0)


def test_without_noise_errors_are_few() -> None:
    assert trial.error_without_noise(federation()) < 0.1


def test_a_trial_repeats() -> None:
    found, fed = choice("dp-sgd, 30 rounds"), federation(SizeGroup(4, 60))

    first, second = (trial.error_of_trial(found, fed, np.random.default_rng(4)) for _ in range(2))

    assert first == second
