"""Advice ranks by the mean error, says which ranks are close, and agrees with measured runs.

Drives `simulations.advice.ranking`.
"""

import numpy as np
import pytest

from common.config.loading import Scalar
from common.errors import ConfigError
from simulations.advice import ranking
from simulations.advice.candidates import Candidate
from simulations.advice.features import TASKS
from simulations.advice.federation import SizeGroup
from simulations.advice.ranking import Advice, advise

GIVEN: dict[str, Scalar] = {"num-clients": 4, "privacy.target-epsilon": 2.0, "num-rounds": 4}
GROUPS = (SizeGroup(4, 50),)


def small(**more: int) -> Advice:
    return advise(GIVEN, GROUPS, num_classes=3, num_features=16, **more)


def test_ranks_follow_the_mean_error_and_repeat() -> None:
    first, second = small(), small()

    errors = [row.expected_error for row in first.ranked]
    assert errors == sorted(errors)
    assert [row.errors for row in first.ranked] == [row.errors for row in second.ranked]
    assert {len(values) for values in first.ranked[0].errors.values()} == {ranking.NUM_SEEDS}
    assert list(first.without_noise) == ["hard", "easy"]
    assert [first.num_clients, first.total_units, first.drawn_rows] == [4, 200, 200]


def test_a_rank_is_clear_only_if_it_is_better_in_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def error(candidate: Candidate, *_: object) -> float:
        tried.append(candidate.name)
        number = list(dict.fromkeys(tried)).index(candidate.name)
        # The second and the third candidate change places by the trial.
        return [0.1, 0.2, 0.2 + 0.01 * (-1) ** tried.count(candidate.name), 0.4][number]

    monkeypatch.setattr(ranking, "error_of_trial", error)
    monkeypatch.setattr(ranking, "num_cores", lambda: 1)

    found = small(num_seeds=2)

    assert [row.is_clear for row in found.ranked] == [True, False, True, False]


def test_other_seeds_are_other_federations_and_other_tasks() -> None:
    errors = small().without_noise

    assert len({*errors["hard"]}) > 1
    assert np.mean(errors["hard"]) > np.mean(errors["easy"])


def test_settings_that_allow_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="below 1 / images of a client"):
        advise({**GIVEN, "privacy.delta": 0.5}, GROUPS, num_classes=3, num_features=16)


# Accuracy of runs with EfficientNet-Lite0 at 128 px, medians over seeds, see docs/privacy.md and docs/benchmarks.md:
# noise in shares, noise at each client, statistics. None where nobody ran it, or where seeds differ by more.
_MEASURED = [
    ("hard", 10, 5_000, 2, 8, 1.0, (0.771, 0.747, 0.714)),
    ("hard", 10, 5_000, 2, 8, 8.0, (None, 0.782, 0.757)),
    ("easy", 5, 288, 1, 4, 2.0, (0.858, 0.826, 0.722)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "clients", "size", "colluding", "honest", "epsilon", "accuracies"), _MEASURED)
def test_the_order_is_that_of_measured_runs(
    name: str,
    clients: int,
    size: int,
    colluding: int,
    honest: int,
    epsilon: float,
    accuracies: tuple[float | None, ...],
) -> None:
    given: dict[str, Scalar] = {
        "num-clients": clients,
        "num-rounds": 30,
        "privacy.target-epsilon": epsilon,
        "privacy.secure-colluding": colluding,
        "privacy.secure-honest": honest,
    }
    measured = {
        combination: accuracy
        for combination, accuracy in zip(
            ("dp-sgd, secure, 30 rounds", "dp-sgd, 30 rounds", "dp-statistics, 1 round"), accuracies, strict=True
        )
        if accuracy is not None
    }
    task = next(task for task in TASKS if task.name == name)

    found = advise(given, [SizeGroup(clients, size)], num_classes=10, num_features=1_280, tasks=[task], num_seeds=1)

    order = [row.candidate.name for row in found.ranked if row.candidate.name in measured]
    assert order == sorted(measured, key=lambda one: -measured[one])
