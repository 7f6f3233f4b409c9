"""Steps of a server along sums of clients' gradients, from the clipped sums to the model."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.training.dp_sgd import head_gradient_sum
from client.training.round_settings import LocalSettings
from common.errors import PrivacyError
from common.models.linear_head import HEAD_WEIGHT, initial_head
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan
from common.privacy.step_rule import LOGIT_NOISE, longest_step, summed_steps
from common.secagg.noise_shares import gradient_scale, share_words, values_of_sum
from server.aggregation.summed_steps import SummedSteps
from tests.support.ledger.builders import PLAN
from tests.support.secagg.ring_sums import ring_sum

CLASSES, SIZE, CLIENTS, SHARES = 3, 8, 5, 4
SHARED = replace(
    PLAN,
    sample_rate=1.0,
    steps_per_round=1,
    max_grad_norm=0.1,
    noise_multiplier=5.0,
    noise_shares=SHARES,
    counts=None,
)
LOCAL = LocalSettings(learning_rate=0.0, momentum=0.0, epochs=1, batch_size=None)
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(60, SIZE)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, 60)


class Silent:
    """Bytes of zeros, the same noise for all."""

    def random_bytes(self, size: int) -> bytes:
        return bytes(size)


def gradient(rows: slice, plan: PrivacyPlan = SHARED, features: np.ndarray = FEATURES) -> np.ndarray:
    return head_gradient_sum(initial_head(SIZE, CLASSES), features[rows], LABELS[rows], plan, LOCAL)


@pytest.mark.parametrize("length", [1.0, 1e3, 0.0, math.nan, math.inf])
def test_one_image_more_moves_a_clients_words_by_no_more_than_the_clip_bound(length: float) -> None:
    """T1 on the real client step, up to the whole numbers before the masks."""
    scale = gradient_scale(SHARED, CLASSES * SIZE, total_units=60, num_clients=CLIENTS)
    features = FEATURES.copy()
    features[19] *= np.float32(length)

    words = [
        share_words(gradient(slice(0, stop), features=features), scale, num_units=20, stream=Silent())
        for stop in (19, 20)
    ]

    moved = np.linalg.norm(values_of_sum(words[1] - words[0], scale))
    assert moved <= SHARED.max_grad_norm * (1 + SENSITIVITY_SLACK)
    assert (moved > 0) == (0 < length < math.inf)


def test_sums_of_clients_are_the_sum_of_one_that_holds_all_images() -> None:
    """Only the noise is left of the difference, and it is that of all clients' shares."""
    scale = gradient_scale(SHARED, CLASSES * SIZE, total_units=60, num_clients=CLIENTS)
    parts = [slice(12 * client, 12 * client + 12) for client in range(CLIENTS)]

    words = [share_words(gradient(part), scale, num_units=12, stream=Silent()) for part in parts]
    silent = [share_words(np.zeros(CLASSES * SIZE), scale, num_units=12, stream=Silent()) for _ in parts]

    found = values_of_sum(ring_sum(words, scale.bits) - ring_sum(silent, scale.bits), scale)
    assert found == pytest.approx(gradient(slice(0, 60)), abs=CLIENTS * scale.step)


def test_the_server_divides_by_declared_units_of_the_survivors_and_keeps_its_momentum() -> None:
    steps = SummedSteps(SHARED, total_units=60, num_clients=CLIENTS, rule=2, rate=2.0, factor=0.5)
    scale = gradient_scale(SHARED, CLASSES * SIZE, total_units=60, num_clients=CLIENTS)
    start = {HEAD_WEIGHT: np.ones((CLASSES, SIZE), dtype=np.float32)}
    one = np.full(CLASSES * SIZE, round(3.0 / scale.step), dtype=np.int64).view(np.uint64)

    first = steps.step(start, one, scale, num_units=60)
    second = steps.step(first, one, scale, num_units=30)

    assert first[HEAD_WEIGHT] == pytest.approx(1 - 2 * 0.05)
    assert second[HEAD_WEIGHT] == pytest.approx(0.9 - 2 * (0.025 + 0.1))


def moved_by(rate: float, momentum: float, rounds: int) -> float:
    """Return the norm of what each round's unit impulse has moved the head by in the end."""
    weight, velocity = np.zeros(rounds), np.zeros(rounds)
    for impulse in np.eye(rounds):
        velocity = momentum * velocity + impulse
        weight += rate * velocity
    return float(np.linalg.norm(weight))


@pytest.mark.parametrize("rule", [1, 2])
@pytest.mark.parametrize("noise", [300.0, 3.0, 0.02])
@pytest.mark.parametrize("rounds", [1, 3, 30])
def test_the_rule_leaves_no_more_than_its_noise_in_every_final_head(noise: float, rounds: int, rule: int) -> None:
    public: dict[str, Any] = {"max_grad_norm": 0.1, "total_units": 1_000, "num_rounds": rounds}
    rate, momentum = summed_steps(noise_stddev=noise, **public, version=rule)

    left = moved_by(rate, momentum, rounds) * noise / 1_000
    if rule == 1:
        assert left == pytest.approx(LOGIT_NOISE, rel=0.01)
        # Long steps are divided among the rounds that follow.
        assert (momentum > 0) == (LOGIT_NOISE * 1_000 / (noise * math.sqrt(rounds)) * 0.1 > 60)
    else:
        # A shorter run or less noise than the longest step and the largest momentum make use of.
        full = momentum == 0.9 and rate * 0.1 == longest_step(rounds)
        assert left <= 1.01 * LOGIT_NOISE
        assert full or left > 0.8 * LOGIT_NOISE
        assert rate * 0.1 <= longest_step(rounds)
        assert 0.7 <= momentum <= 0.9


@pytest.mark.parametrize(
    ("noise", "units", "rounds", "first", "second"),
    [
        (1.727, 50_000, 60, (671.0, 0.885), (1500.0, 0.72)),
        (5.2, 1_437, 30, (70.6, 0.0), (22.6, 0.7)),
        (0.3, 1_437, 3, (2030.0, 0.845), (600.0, 0.9)),
    ],
)
def test_each_version_of_the_rule_keeps_its_steps(
    noise: float, units: int, rounds: int, first: tuple[float, float], second: tuple[float, float]
) -> None:
    """A run that is resumed goes on with the steps that it began with."""
    public: dict[str, Any] = {"noise_stddev": noise, "max_grad_norm": 0.1, "total_units": units, "num_rounds": rounds}

    assert [summed_steps(**public, version=version) for version in (1, 2)] == [first, second]


def test_momentum_of_the_rule_grows_as_the_noise_falls() -> None:
    public: dict[str, Any] = {"max_grad_norm": 0.1, "total_units": 1_000, "num_rounds": 30}
    noises = [10.0, 1.0, 0.3, 0.25, 0.2, 0.1, 0.01]

    steps = [summed_steps(noise_stddev=noise, **public, version=2) for noise in noises]

    assert steps == sorted(steps)
    assert len(set(steps)) > 4


@pytest.mark.parametrize("rule", [1, 2])
def test_the_rule_is_told_the_noise_of_all_clients(rule: int) -> None:
    """It is sqrt(5 / 4) of the accounted noise, which would be for four clients."""
    steps = SummedSteps(SHARED, total_units=60, num_clients=CLIENTS, rule=rule)
    noise = SHARED.noise_stddev * math.sqrt(CLIENTS / SHARES)
    bound = SHARED.max_grad_norm

    assert (steps.rate, steps.factor) == summed_steps(
        noise_stddev=noise, max_grad_norm=bound, total_units=60, num_rounds=SHARED.num_rounds, version=rule
    )


@pytest.mark.parametrize("changes", [{"noise_shares": 0}, {"sample_rate": 0.5}, {"steps_per_round": 2}], ids=str)
def test_a_gradient_sum_is_refused_under_another_plan(changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="under a plan that has none"):
        gradient(slice(0, 5), replace(SHARED, **changes))  # type: ignore[arg-type]
