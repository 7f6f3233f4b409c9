"""Rounds whose replies do not fit into memory: the same models, and few replies in memory at a time."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.messages.codec import Declaration, Evaluation, encode_declaration, encode_update, record_to_arrays
from common.messages.fields import ARRAYS, Releases
from common.metrics import Counts
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.plan import PrivacyPlan
from common.strategies import STRATEGIES
from server.aggregation import reply_spool
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import enroll_clients
from server.rounds.loop import RoundResult, RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from tests.support.server.toy_clients import config_for

NUM_CLIENTS, NUM_VALUES = 12, 300
START = {"w": np.zeros((NUM_VALUES, 2), dtype=np.float32), "b": np.zeros(3, dtype=np.float32)}
EXACT = Evaluation(Counts(np.array([[1, 1], [0, 2]]), 0.5))
WITH_LOSS = Evaluation(EXACT.counts, None, 0.25)


class Frozen:
    """The same numbers each time."""

    def random_bytes(self, size: int) -> bytes:
        return np.random.default_rng(4).bytes(size)


class Clients:
    """Clients that move by numbers of their own, one of them far too far, and who notes which replies are alive."""

    def __init__(self, *, evaluation: Evaluation | None = EXACT) -> None:
        self.app, self._evaluation = ClientApp(), evaluation
        self.alive: list[weakref.ref[np.ndarray]] = []
        self.most_alive = 0
        self.app.query()(self._query)
        self.app.train()(self._train)

    def _query(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        declared = Declaration(f"{client:05d}", 10 + client, ("a", "b"), (2,), "")
        return Message(encode_declaration(declared), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        self.most_alive = max(self.most_alive, sum(reference() is not None for reference in self.alive))
        rng, far = np.random.default_rng(client), 1e9 if client == 5 else 1.0
        incoming = record_to_arrays(message.content.array_records[ARRAYS])
        trained = {
            name: (array + far * rng.normal(size=array.shape)).astype(np.float32) for name, array in incoming.items()
        }
        self.alive.append(weakref.ref(trained["w"]))
        return Message(encode_update(trained, 10 + client, self._evaluation), reply_to=message)

    def run(self, name: str = "FedAvg", *, workers: int = 1, rounds: int = 2, **settings: Any) -> list[RoundResult]:
        grid = InProcessGrid(self.app, NUM_CLIENTS, {}, num_workers=workers, least_work=0)
        clients = enroll_clients(grid, NUM_CLIENTS, run_id="run").clients
        releases = Releases(train_loss=self._evaluation is WITH_LOSS)
        if "central" in settings:
            releases = Releases(MECHANISMS["client-dp"], "none")
        channel = Channel(grid, releases, "run")
        cohorts = RoundSettings(clients, [list(clients)] * rounds, **settings)
        return list(run_rounds(channel, build_strategy(config_for(name, NUM_CLIENTS)), START, cohorts))


def as_bytes(results: list[RoundResult]) -> list[tuple[bytes, dict[str, str], float]]:
    return [
        (b"".join(array.tobytes() for array in result.arrays.values()), result.record.failures, result.record.bytes_up)
        for result in results
    ]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_round_that_does_not_fit_into_memory_gives_the_same_bytes(
    name: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = WITH_LOSS if STRATEGIES[name].needs_exact_loss else EXACT
    expected = as_bytes(Clients(evaluation=evaluation).run(name))
    monkeypatch.setattr(reply_spool, "IN_MEMORY_BYTES", 3 * (2 * NUM_VALUES + 3) * 4)

    found = as_bytes(Clients(evaluation=evaluation).run(name, workers=workers))

    assert found == expected
    assert found[0][1] == {"00005": "NORM"}


def test_clipped_updates_that_do_not_fit_into_memory_give_the_same_noised_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = PrivacyPlan("client-dp", "client", NUM_CLIENTS, 1.0, 1, 2, 2.0, 1.5, 1e-5)
    settings: dict[str, Any] = {"central": plan, "stream": Frozen}
    expected = as_bytes(Clients(evaluation=None).run(**settings))
    monkeypatch.setattr(reply_spool, "IN_MEMORY_BYTES", 0)

    found = as_bytes(Clients(evaluation=None).run(**settings))

    assert found == expected
    assert found[0][1] == {}


@pytest.fixture(name="no_collection")
def no_collection_fixture() -> Iterator[None]:
    """No garbage collection: what is freed is freed at once."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("in_memory", [0, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_few_replies_are_in_memory_at_a_time(workers: int, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_spool, "IN_MEMORY_BYTES", in_memory * (2 * NUM_VALUES + 3) * 4)
    clients = Clients()

    clients.run(workers=workers, rounds=4)

    # Each worker has at most two clients' replies in hand or waiting, and the server one.
    assert clients.most_alive <= in_memory + (1 if workers == 1 else 2 * workers + 1)


@pytest.mark.usefixtures("no_collection")
def test_the_replies_of_a_round_are_dropped_before_the_next_one_begins() -> None:
    clients = Clients()

    clients.run(rounds=4)

    # All replies of a round fit into memory here.
    assert clients.most_alive < NUM_CLIENTS
