"""The loop over strategies: aggregation by hand, order of replies, failures."""

import random
from collections.abc import Iterable
from typing import get_args

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from common.config import defaults, override, parse
from common.errors import ConfigError, FederationError
from common.metrics import Counts
from common.records import Declaration, encode_counts, encode_declaration, encode_update, record_to_arrays, sum_counts
from common.sections import RunConfig, StrategyName
from server.aggregation import build_strategy
from server.rounds import evaluate_at_clients, meet_clients, run_rounds
from simulations.in_process import InProcessGrid

SHIFTS = np.array([0.1, 0.4, -0.2, 0.9, 0.3, 0.5], dtype=np.float32)


def toy_app(*, failing: Iterable[int] = (), classes: dict[int, tuple[str, ...]] | None = None) -> ClientApp:
    """Clients of two parameters: each adds its own shift; sizes are 10, 20, 30, ..."""
    app = ClientApp()

    def who(context: Context) -> int:
        return int(context.node_config["partition-id"])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        names = (classes or {}).get(who(context), ("a", "b"))
        declared = Declaration(f"{who(context):05d}", 10 * (who(context) + 1), names, (2,), "")
        return Message(encode_declaration(declared), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if who(context) in failing:
            return Message(Error(1000, "INTERNAL"), reply_to=message)
        weights = record_to_arrays(message.content.array_records["arrays"])["w"] + SHIFTS[who(context)]
        counts = Counts(np.array([[who(context), 1], [0, 2]]), 0.5)
        return Message(encode_update({"w": weights}, 10 * (who(context) + 1), counts), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(encode_counts(10, Counts(np.array([[who(context), 0], [0, 1]]), 1.0)), reply_to=message)

    return app


class ScrambledGrid(InProcessGrid):
    """Replies arrive in any order."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        random.shuffle(replies)
        return replies


def config_for(name: StrategyName, clients: int = 6) -> RunConfig:
    return parse(override(defaults(), {"strategy.name": name, "num-clients": clients}))


def run(
    strategy_name: StrategyName, rounds: int = 3, grid_type: type[InProcessGrid] = InProcessGrid
) -> list[np.ndarray]:
    grid = grid_type(toy_app(), 6, {})
    clients = meet_clients(grid, 6)
    start = {"w": np.zeros(2, dtype=np.float32)}
    strategy = build_strategy(config_for(strategy_name))
    return [r.arrays["w"] for r in run_rounds(grid, strategy, start, clients, [list(clients)] * rounds)]


def test_run_rounds_with_fedavg_equals_the_weighted_mean_worked_by_hand() -> None:
    mean = float((SHIFTS * np.arange(1, 7)).sum() / 21)

    assert np.allclose(run("FedAvg"), [[mean] * 2, [2 * mean] * 2, [3 * mean] * 2], atol=1e-6)


def test_run_rounds_with_fedmedian_equals_the_median() -> None:
    assert np.allclose(run("FedMedian", rounds=1), np.median(SHIFTS), atol=1e-6)


@pytest.mark.parametrize("name", get_args(StrategyName))
def test_run_rounds_drives_every_strategy_whatever_order_replies_come_in(name: StrategyName) -> None:
    in_order, scrambled = run(name), run(name, grid_type=ScrambledGrid)

    assert all(np.isfinite(weights).all() for weights in in_order)
    assert all(np.array_equal(a, b) for a, b in zip(in_order, scrambled, strict=True))


def test_run_rounds_takes_any_flower_strategy_object() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet_clients(grid, 6)
    theirs = FedAvg(min_train_nodes=1, min_available_nodes=1, train_metrics_aggr_fn=sum_counts)

    results = list(run_rounds(grid, theirs, {"w": np.zeros(2, np.float32)}, clients, [["00002"]]))

    assert np.allclose(results[0].arrays["w"], SHIFTS[2])
    assert results[0].record.num_clients == 1


def test_run_rounds_sums_counts_and_reports_bytes() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet_clients(grid, 6)
    start = {"w": np.zeros(2, dtype=np.float32)}

    (result,) = run_rounds(grid, build_strategy(config_for("FedAvg")), start, clients, [list(clients)])

    assert result.record.counts is not None
    assert result.record.counts.confusion.tolist() == [[15, 6], [0, 12]]
    assert result.record.counts.loss_sum == 3.0
    assert result.record.bytes_up > result.record.bytes_down > 8


def test_run_rounds_goes_on_without_failed_clients_and_names_them() -> None:
    grid = InProcessGrid(toy_app(failing={1, 4}), 6, {})
    clients = meet_clients(grid, 6)

    (result,) = run_rounds(
        grid, build_strategy(config_for("FedAvg")), {"w": np.zeros(2, np.float32)}, clients, [list(clients)]
    )

    assert result.record.failures == {"00001": "INTERNAL", "00004": "INTERNAL"}
    assert np.allclose(result.arrays["w"], (0.1 * 1 - 0.2 * 3 + 0.9 * 4 + 0.5 * 6) / 14, atol=1e-6)


def test_run_rounds_stops_when_nobody_sends_an_update() -> None:
    grid = InProcessGrid(toy_app(failing=range(6)), 6, {})
    clients = meet_clients(grid, 6)
    rounds = run_rounds(
        grid, build_strategy(config_for("FedAvg")), {"w": np.zeros(2, np.float32)}, clients, [list(clients)]
    )

    with pytest.raises(FederationError, match=r"round 1.*INTERNAL"):
        next(rounds)


def test_evaluate_at_clients_gives_counts_by_name() -> None:
    grid = InProcessGrid(toy_app(), 6, {})
    clients = meet_clients(grid, 6)

    counts = evaluate_at_clients(grid, build_strategy(config_for("FedAvg")), {"w": np.zeros(2, np.float32)}, clients, 1)

    assert [counts[name].confusion[0, 0] for name in sorted(counts)] == [0, 1, 2, 3, 4, 5]


def test_meet_clients_refuses_clients_that_disagree() -> None:
    grid = InProcessGrid(toy_app(classes={3: ("a", "c")}), 6, {})

    with pytest.raises(FederationError, match="00003 disagree on classes"):
        meet_clients(grid, 6)


def test_build_strategy_refuses_a_cohort_too_small_for_it() -> None:
    with pytest.raises(ConfigError, match="Krum"):
        build_strategy(config_for("Krum", clients=2))


def test_in_process_grid_pushes_and_pulls() -> None:
    grid = InProcessGrid(toy_app(), 2, {})
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]

    ids = list(grid.push_messages(messages))

    assert len(list(grid.pull_messages(ids))) == 2
    assert not list(grid.pull_messages(ids))
