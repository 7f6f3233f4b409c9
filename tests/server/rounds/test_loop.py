"""The loop over strategies: aggregation by hand, order of replies, failures.

Drives `server.rounds.closing_evaluation`.
"""

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from common.errors import ConfigError, FederationError
from common.messages.codec import (
    sum_counts,
)
from common.messages.fields import Releases
from common.strategies import STRATEGIES
from server.aggregation.strategies import build_strategy
from server.rounds.closing_evaluation import evaluate_at_clients
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from tests.support.server.toy_clients import OPEN, SHIFTS, START, ScrambledGrid, config_for, meet, rounds_of, toy_app


def run(strategy_name: str, rounds: int = 3, grid_type: type[InProcessGrid] = InProcessGrid) -> list[np.ndarray]:
    fair = strategy_name == "QFedAvg"
    grid = grid_type(toy_app(loss=0.5 if fair else None), 6, {})
    clients = meet(grid)
    strategy = build_strategy(config_for(strategy_name))
    results = rounds_of(grid, strategy, clients, [list(clients)] * rounds, Releases(train_loss=fair))
    return [result.arrays["w"] for result in results]


def test_run_rounds_with_fedavg_equals_the_weighted_mean_worked_by_hand() -> None:
    mean = float((SHIFTS * np.arange(1, 7)).sum() / 21)

    assert np.allclose(run("FedAvg"), [[mean] * 2, [2 * mean] * 2, [3 * mean] * 2], atol=1e-6)


def test_run_rounds_with_fedmedian_equals_the_median() -> None:
    assert np.allclose(run("FedMedian", rounds=1), np.median(SHIFTS), atol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_run_rounds_drives_every_strategy_whatever_order_replies_come_in(name: str) -> None:
    in_order, scrambled = run(name), run(name, grid_type=ScrambledGrid)

    assert all(np.isfinite(weights).all() for weights in in_order)
    assert all(np.array_equal(a, b) for a, b in zip(in_order, scrambled, strict=True))


def test_run_rounds_takes_any_flower_strategy_object() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet(grid)
    theirs = FedAvg(min_train_nodes=1, min_available_nodes=1, train_metrics_aggr_fn=sum_counts)

    results = list(rounds_of(grid, theirs, clients, [["00002"]], OPEN))

    assert np.allclose(results[0].arrays["w"], SHIFTS[2])
    assert results[0].record.num_clients == 1


def test_run_rounds_sums_counts_and_reports_bytes() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet(grid)

    (result,) = rounds_of(grid, build_strategy(config_for("FedAvg")), clients, [list(clients)], OPEN)

    assert result.record.counts is not None
    assert result.record.counts.confusion.tolist() == [[15, 6], [0, 12]]
    assert result.record.counts.loss_sum == 3.0
    assert result.record.bytes_up > result.record.bytes_down > 8


def test_run_rounds_goes_on_without_failed_clients_and_names_them() -> None:
    grid = InProcessGrid(toy_app(failing={1, 4}), 6, {})
    clients = meet(grid)

    (result,) = rounds_of(grid, build_strategy(config_for("FedAvg")), clients, [list(clients)], OPEN)

    assert result.record.failures == {"00001": "INTERNAL", "00004": "INTERNAL"}
    assert np.allclose(result.arrays["w"], (0.1 * 1 - 0.2 * 3 + 0.9 * 4 + 0.5 * 6) / 14, atol=1e-6)


MALFORMED: dict[str, Any] = {
    "not-square": {"confusion": [1, 2, 3]},
    "negative": {"confusion": [1, 2, 3, -4]},
    "other-classes": {"confusion": [1] * 9},
    "no-number": {"loss-sum": [1.0]},
    "other-weight": {"num-examples": 10**9},
    "undeclared": {"accuracy": 1.0},
}


@pytest.mark.parametrize("how", MALFORMED)
def test_run_rounds_leaves_a_client_out_whose_reply_is_malformed(how: str) -> None:
    grid = InProcessGrid(toy_app(spoilt={1: MALFORMED[how], 4: MALFORMED[how]}), 6, {})
    clients = meet(grid)
    strategy = build_strategy(config_for("FedAvg"))

    first, second = rounds_of(grid, strategy, clients, [list(clients)] * 2, OPEN)

    assert first.record.failures == second.record.failures == {"00001": "MESSAGE", "00004": "MESSAGE"}
    assert first.record.num_clients == 4
    assert first.record.counts is not None
    assert first.record.counts.confusion.tolist() == [[0 + 2 + 3 + 5, 4], [0, 8]]
    assert np.allclose(first.arrays["w"], (0.1 * 1 - 0.2 * 3 + 0.9 * 4 + 0.5 * 6) / 14, atol=1e-6)


def test_run_rounds_leaves_a_client_out_whose_loss_qfedavg_could_not_weigh_by() -> None:
    grid = InProcessGrid(toy_app(loss=0.5, spoilt={2: {"train-loss": float("nan")}}), 6, {})
    clients = meet(grid)
    fair = Releases(train_loss=True)

    (result,) = rounds_of(grid, build_strategy(config_for("QFedAvg")), clients, [list(clients)], fair)

    assert result.record.failures == {"00002": "MESSAGE"}
    assert np.isfinite(result.arrays["w"]).all()


def test_evaluate_at_clients_leaves_out_malformed_counts() -> None:
    grid = InProcessGrid(toy_app(spoilt={3: {"confusion": [1, 2, 3]}}), 6, {})
    clients = meet(grid)

    closing = evaluate_at_clients(Channel(grid, OPEN, "run"), build_strategy(config_for("FedAvg")), START, clients, 1)

    assert sorted(closing.by_client) == ["00000", "00001", "00002", "00004", "00005"]
    assert closing.failures == {"00003": "MESSAGE"}


def test_run_rounds_stops_when_nobody_sends_an_update() -> None:
    grid = InProcessGrid(toy_app(failing=range(6)), 6, {})
    clients = meet(grid)
    rounds = rounds_of(grid, build_strategy(config_for("FedAvg")), clients, [list(clients)], OPEN)

    with pytest.raises(FederationError, match=r"round 1.*INTERNAL"):
        next(rounds)


def test_evaluate_at_clients_gives_counts_by_name() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet(grid)

    closing = evaluate_at_clients(Channel(grid, OPEN, "run"), build_strategy(config_for("FedAvg")), START, clients, 1)

    assert closing.failures == {}
    assert [counts.confusion[0, 0] for _, counts in sorted(closing.exact.items())] == [0, 1, 2, 3, 4, 5]


def test_meet_clients_refuses_clients_that_disagree() -> None:
    grid = InProcessGrid(toy_app(classes={3: ("a", "c")}), 6, {})

    with pytest.raises(FederationError, match="00003 disagree on classes"):
        meet(grid)


def test_build_strategy_refuses_a_cohort_too_small_for_it() -> None:
    with pytest.raises(ConfigError, match="Krum"):
        build_strategy(config_for("Krum", clients=2))


def test_in_process_grid_pushes_and_pulls() -> None:
    grid = InProcessGrid(toy_app(), 2, {})
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]

    ids = list(grid.push_messages(messages))

    assert len(list(grid.pull_messages(ids))) == 2
    assert not list(grid.pull_messages(ids))
