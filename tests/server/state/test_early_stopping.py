"""Early stop and the best model: by what clients let leave, never by a simulation's own figures.

Drives `server.rounds.round_record`.
"""

from dataclasses import replace

import numpy as np
import pytest

from common.config.evaluation import StoppingConfig
from common.metrics import Counts, NoisedCounts
from server.rounds.round_record import RoundRecord
from server.state.early_stopping import EarlyStopping


def record(number: int, accuracy: float, *, simulation_only: bool = False, noised: float | None = None) -> RoundRecord:
    right = round(100 * accuracy)
    return RoundRecord(
        server_round=number,
        num_clients=2,
        failures={},
        counts=Counts(np.array([[right, 100 - right], [0, 0]]), 1.0),
        personal=None,
        noised=None if noised is None else NoisedCounts(np.array([round(100 * noised), 100 - round(100 * noised)])),
        simulation_only=simulation_only,
        seconds=0.1,
        bytes_up=1,
        bytes_down=1,
    )


def model(value: float) -> dict[str, np.ndarray]:
    return {"w": np.array([value])}


def test_it_stops_after_so_many_models_that_are_no_better() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=2, keep="last", max_epsilon=None))

    stops = [stopping.update(record(n, a), model(n)) for n, a in enumerate((0.9, 0.5, 0.6, 0.6, 0.55, 0.7), start=1)]

    assert stops == [False, False, False, False, True, False]  # round 1 judges the start, which is no candidate


def test_the_best_model_is_the_one_that_entered_the_round_that_judged_it() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=0, keep="best", max_epsilon=None))
    for number, accuracy in enumerate((0.1, 0.5, 0.8, 0.6), start=1):
        assert not stopping.update(record(number, accuracy), model(number))

    assert stopping.best_round == 2
    assert stopping.selected_model(model(99))["w"] == 3


def test_keep_last_keeps_the_last() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=0, keep="last", max_epsilon=None))
    stopping.update(record(2, 0.9), model(2))

    assert stopping.selected_model(model(99))["w"] == 99


def test_a_simulations_own_figures_have_no_say() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=1, keep="best", max_epsilon=None))

    stops = [stopping.update(record(n, 0.9 - n / 10, simulation_only=True), model(n)) for n in range(1, 6)]

    assert stops == [False] * 5
    assert stopping.best == -1.0


def test_noised_counts_decide_where_there_are_such() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=0, keep="best", max_epsilon=None), noise_stddev=5.0)
    for number, (exact, noised) in enumerate(((0.1, 0.1), (0.9, 0.3), (0.2, 0.7)), start=1):
        stopping.update(record(number, exact, simulation_only=True, noised=noised), model(number))

    assert stopping.best_round == 2
    assert stopping.best == pytest.approx(0.7)


def test_rounds_that_are_not_counted_are_not_waited_for() -> None:
    stopping = EarlyStopping(StoppingConfig(patience=2, keep="last", max_epsilon=None))
    judged = {3: 0.9, 6: 0.5, 9: 0.6}

    stops = []
    for number in range(1, 10):
        line = record(number, judged.get(number, 0.0))
        stops.append(stopping.update(line if number in judged else replace(line, counts=None), model(number)))

    assert stops == [False] * 8 + [True]
    assert stopping.best_round == 2
