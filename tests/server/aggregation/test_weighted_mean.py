"""Mean of the clients' models that a strategy gets as one reply, against Flower's own average of all replies."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from common.arrays import Arrays
from common.messages.codec import arrays_to_record
from common.messages.fields import ARRAYS, METRICS, NUM_EXAMPLES
from common.strategies import STRATEGIES, UNIFORM_STRATEGIES
from server.aggregation import weighted_mean as weighted
from server.aggregation.reply_spool import ReplySpool
from server.aggregation.strategies import build_strategy
from server.aggregation.strategy_state import read_state
from server.aggregation.weighted_mean import takes_a_mean, weighted_mean
from server.rounds import loop
from server.rounds.cohorts import CohortNodes
from simulations.engines.in_process import InProcessGrid
from tests.support.server.toy_clients import config_for, toy_app

# Longer than a block, a scalar, and nothing at all.
SHAPES: dict[str, tuple[int, ...]] = {"long": (weighted._BLOCK + 5, 3), "scalar": (), "empty": (0, 4), "bias": (17,)}
WEIGHTS = [3, 0, 50, 7, 1_000_003, 11]


def model(seed: int) -> Arrays:
    """Values of all sizes, with zeros of both signs and numbers below the normal ones."""
    rng = np.random.default_rng(seed)
    odd = np.array([0.0, -0.0, 1e-45, -1e-40, 3e37, -2e38, 1.0], dtype=np.float32)
    arrays = {}
    for name, shape in SHAPES.items():
        values = (rng.normal(size=shape) * 10.0 ** rng.integers(-8, 8, size=shape)).astype(np.float32)
        arrays[name] = np.where(rng.random(shape) < 0.1, rng.choice(odd, size=shape), values).astype(np.float32)
    return arrays


@pytest.fixture(name="asked", autouse=True)
def asked_fixture() -> Message:
    InProcessGrid(toy_app(), 1, {})  # gives the process the identity that Flower wants of whoever makes messages
    return Message(RecordDict(), 2, "train")


def replies_of(round_: int, asked: Message) -> list[Message]:
    contents = [
        RecordDict({ARRAYS: arrays_to_record(model(100 * round_ + n)), METRICS: MetricRecord({NUM_EXAMPLES: weight})})
        for n, weight in enumerate(WEIGHTS)
    ]
    return [Message(content, reply_to=asked) for content in contents]


def three_rounds(name: str, asked: Message, *, as_one: bool) -> list[bytes]:
    """Aggregates and state after each round, as bytes."""
    strategy = build_strategy(config_for(name, len(WEIGHTS)))
    record, seen = arrays_to_record(model(1)), []
    for number in (1, 2, 3):
        list(strategy.configure_train(number, record, ConfigRecord(), CohortNodes([2])))  # type: ignore[arg-type]
        replies = replies_of(number, asked)
        merged, _ = strategy.aggregate_train(number, [loop._mean_message(replies)] if as_one else replies)
        assert merged is not None
        seen += [merged[key].numpy().tobytes() for key in SHAPES]
        seen += [array.tobytes() for array in read_state(strategy)[0].values()]
        record = merged
    return seen


@pytest.mark.parametrize("name", UNIFORM_STRATEGIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_strategy_makes_the_same_bytes_of_the_mean_as_of_all_replies(name: str, asked: Message) -> None:
    assert takes_a_mean(build_strategy(config_for(name, len(WEIGHTS))))
    assert three_rounds(name, asked, as_one=True) == three_rounds(name, asked, as_one=False)


@pytest.mark.parametrize("in_memory", [0, 1 << 20, 1 << 30])
@pytest.mark.parametrize("group", [1, 1 << 20])
def test_the_mean_is_the_same_wherever_the_replies_lie(
    in_memory: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [arrays_to_record(model(seed)) for seed in range(len(WEIGHTS))]
    expected = weighted_mean(records, WEIGHTS)
    monkeypatch.setattr(weighted, "_GROUP_BYTES", group)
    monkeypatch.setattr(weighted, "_BLOCK", 1000)
    spool = ReplySpool(in_memory=in_memory)

    found = weighted_mean([spool.keep(record) for record in records], WEIGHTS)

    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(UNIFORM_STRATEGIES)))
def test_a_strategy_that_looks_at_single_replies_gets_them_all(name: str) -> None:
    assert not takes_a_mean(build_strategy(config_for(name, 12)))


def test_a_strategy_that_is_not_flowers_own_gets_all_replies() -> None:
    class Median(FedAvg):
        pass

    Median.__name__ = "FedAvg"
    strategies: list[Strategy] = [Median(), FedAvg(weighted_by_key="other")]

    assert not any(map(takes_a_mean, strategies))
    assert takes_a_mean(FedAvg())


def test_a_mean_of_one_record_is_the_record_itself() -> None:
    (found,) = [weighted_mean([ArrayRecord({"w": arrays_to_record(model(0))["long"]})], [7])]

    assert found["w"].tobytes() == model(0)["long"].tobytes()
