"""What strategies carry: a run that is put together again goes on as if nothing had happened."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.messages.fields import Releases
from common.strategies import STRATEGIES
from server.aggregation.strategies import build_strategy
from server.aggregation.strategy_state import read_state, write_state
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from tests.support.server.toy_clients import START, config_for, meet, toy_app

NAMES = tuple(STRATEGIES)
# Changed while a strategy works, and set anew at the start of each round.
NOT_CARRIED = {"current_arrays", "current_round"}


def config_of(name: str) -> RunConfig:
    """With everything switched on that makes a strategy remember: by default FedAvgM has no momentum."""
    config = config_for(name)
    if name != "FedAvgM":
        return config
    return config.model_copy(update={"strategy": config.strategy.model_copy(update={"server_momentum": 0.9})})


def go(strategy: Strategy, name: str, arrays: dict[str, np.ndarray], first: int, last: int) -> dict[str, np.ndarray]:
    fair = name == "QFedAvg"
    grid = InProcessGrid(toy_app(loss=0.5 if fair else None), 6, {})
    clients = meet(grid)
    settings = RoundSettings(clients, [list(clients)] * last)
    for result in run_rounds(Channel(grid, Releases(train_loss=fair), "run"), strategy, arrays, settings, first=first):
        arrays = result.arrays
    return arrays


@pytest.mark.parametrize("name", NAMES)
def test_two_rounds_and_two_more_equal_four(name: str) -> None:
    config = config_of(name)
    whole = go(build_strategy(config), name, START, 1, 4)

    before, after = build_strategy(config), build_strategy(config)
    middle = go(before, name, START, 1, 2)
    write_state(after, *read_state(before))
    resumed = go(after, name, middle, 3, 4)

    assert np.array_equal(whole["w"], resumed["w"])


@pytest.mark.parametrize("name", [name for name in NAMES if STRATEGIES[name].state])
def test_without_its_state_a_strategy_does_something_else(name: str) -> None:
    config = config_of(name)
    whole = go(build_strategy(config), name, START, 1, 4)

    middle = go(build_strategy(config), name, START, 1, 2)

    assert not np.array_equal(whole["w"], go(build_strategy(config), name, middle, 3, 4)["w"])


def plain(value: Any) -> Any:
    """Something to compare by value."""
    if isinstance(value, ArrayRecord):
        return {name: array.numpy().tolist() for name, array in value.items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", NAMES)
def test_what_a_round_changes_in_a_strategy_is_carried(name: str) -> None:
    strategy = build_strategy(config_of(name))
    go(strategy, name, START, 1, 1)
    before = {key: plain(value) for key, value in vars(strategy).items() if not callable(value)}

    go(strategy, name, {"w": np.full(2, 0.25, dtype=np.float32)}, 2, 2)

    changed = {key for key, value in before.items() if plain(vars(strategy)[key]) != value}
    assert changed - NOT_CARRIED <= set(STRATEGIES[name].state)


def test_write_state_refuses_another_strategys_state() -> None:
    state = read_state(build_strategy(config_for("FedAdam")))

    with pytest.raises(ConfigError, match="is not FedAvg"):
        write_state(build_strategy(config_for("FedAvg")), *state)
