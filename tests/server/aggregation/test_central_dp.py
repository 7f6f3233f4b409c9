"""Clip and noise at the server: one client moves the release by at most the bound, whoever answers."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message

from common.messages.codec import Declaration, encode_update
from common.messages.fields import Releases
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from server.aggregation import central_dp
from server.aggregation.central_dp import noised_average
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid
from tests.support.server.enrollment import DECLARED, RUN, Say, app_of
from tests.support.server.toy_clients import config_for

pytestmark = pytest.mark.numerical
PLAN = PrivacyPlan("client-dp", "client", 10, 1.0, 1, 5, 2.0, 1.5, 1e-5)
START = {"w": np.zeros((3, 4), dtype=np.float32), "b": np.ones(5, dtype=np.float32)}
QUIET = replace(PLAN, noise_multiplier=1e-12)


class Frozen:
    """The same numbers each time."""

    def random_bytes(self, size: int) -> bytes:
        return np.random.default_rng(4).bytes(size)


def model(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (array + scale * rng.normal(size=array.shape)).astype(np.float32) for name, array in START.items()}


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].astype(np.float64).ravel() for name in START])


@pytest.mark.parametrize("odd", [model(9, 1e4), model(9, 1e-3), {"w": np.full((3, 4), np.nan), "b": START["b"]}, START])
def test_one_client_moves_the_sum_by_at_most_the_bound(odd: dict[str, np.ndarray]) -> None:
    others = [model(seed) for seed in range(6)]

    without = flat(noised_average(START, others, PLAN, stream=Frozen()))
    with_it = flat(noised_average(START, [*others, odd], PLAN, stream=Frozen()))

    moved = np.linalg.norm(with_it - without) * PLAN.expected_batch_size
    assert moved <= PLAN.max_grad_norm * (1 + 2e-4)


def test_the_average_is_worked_by_hand_and_divides_by_the_planned_size() -> None:
    ended = [{"w": START["w"] + np.float32(3.0), "b": START["b"]}, {"w": START["w"], "b": START["b"] + np.float32(0.1)}]

    found = noised_average(START, ended, QUIET, stream=SecureStream())

    assert np.allclose(found["w"], 2.0 / np.sqrt(12) / 10, atol=1e-5)  # of norm 3 sqrt 12, clipped to 2
    assert np.allclose(found["b"], 1.0 + 0.1 / 10, atol=1e-5)


def test_an_update_that_is_not_finite_counts_as_zero() -> None:
    bad = {"w": np.full((3, 4), np.inf, dtype=np.float32), "b": START["b"]}

    found = noised_average(START, [bad], QUIET, stream=SecureStream())

    assert np.allclose(flat(found), flat(START), atol=1e-4)


def test_noise_has_the_planned_scale() -> None:
    start = {"w": np.zeros(20_000, dtype=np.float32)}

    released = noised_average(start, [start], PLAN, stream=SecureStream())["w"].astype(np.float64)

    expected = PLAN.noise_stddev / PLAN.expected_batch_size
    # The standard error of a standard deviation of so many draws is 0.5 %: 0.95 and 1.05 are ten of them away.
    assert released.std() == pytest.approx(expected, rel=0.025)
    assert abs(released.mean()) < 5 * expected / np.sqrt(len(released))


def test_noise_is_fresh_each_time() -> None:
    one, two = (flat(noised_average(START, [START], PLAN, stream=SecureStream())) for _ in range(2))

    assert not np.isin(one - flat(START), two - flat(START)).any()


def test_clients_weigh_the_same_whatever_size_they_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drives the whole round: a weight may come in before the clip, in the average or with the strategy."""
    monkeypatch.setattr(central_dp, "add_noise", lambda total, **_: total)
    shifts, sizes = {0: 0.3, 1: -0.1}, {0: 10, 1: 1000}

    def says(client: int) -> Say:
        ended = {"w": np.full(2, shifts[client], dtype=np.float32)}
        return lambda message: Message(encode_update(ended, sizes[client], None), reply_to=message)

    clients = {
        f"{n:05d}": EnrolledClient(Declaration(f"{n:05d}", **DECLARED | {"num_units": sizes[n]}), n + 2) for n in sizes
    }
    grid = InProcessGrid(app_of({}, {n: says(n) for n in sizes}), 2, {})
    settings = RoundSettings(clients, [list(clients)], min_clients=2, central=replace(PLAN, num_units=2))
    strategy, start = build_strategy(config_for("FedAvg", 2)), {"w": np.zeros(2, dtype=np.float32)}

    channel = Channel(grid, Releases(MECHANISMS["client-dp"], "none"), RUN)
    (result,) = run_rounds(channel, strategy, start, settings)

    assert np.allclose(result.arrays["w"], 0.1, atol=1e-6)
