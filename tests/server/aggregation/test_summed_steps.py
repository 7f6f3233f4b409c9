"""Steps of a server along sums of clients' gradients, from the clipped sums to the model."""

import math
from dataclasses import replace

import numpy as np
import pytest

from client.training.dp_sgd import head_gradient_sum
from client.training.round_settings import LocalSettings
from common.errors import PrivacyError
from common.models.linear_head import HEAD_WEIGHT, initial_head
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan
from common.privacy.step_rule import LOGIT_NOISE, summed_steps
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
    steps = SummedSteps(SHARED, total_units=60, num_clients=CLIENTS, rate=2.0, factor=0.5)
    scale = gradient_scale(SHARED, CLASSES * SIZE, total_units=60, num_clients=CLIENTS)
    start = {HEAD_WEIGHT: np.ones((CLASSES, SIZE), dtype=np.float32)}
    one = np.full(CLASSES * SIZE, round(3.0 / scale.step), dtype=np.int64).view(np.uint64)

    first = steps.step(start, one, scale, num_units=60)
    second = steps.step(first, one, scale, num_units=30)

    assert first[HEAD_WEIGHT] == pytest.approx(1 - 2 * 0.05)
    assert second[HEAD_WEIGHT] == pytest.approx(0.9 - 2 * (0.025 + 0.1))


@pytest.mark.parametrize("noise", [300.0, 3.0, 0.02])
@pytest.mark.parametrize("rounds", [1, 30])
def test_the_rule_leaves_the_same_noise_in_every_final_head(noise: float, rounds: int) -> None:
    rate, momentum = summed_steps(noise_stddev=noise, max_grad_norm=0.1, total_units=1_000, num_rounds=rounds)
    weight, velocity = np.zeros(rounds), np.zeros(rounds)
    for number, impulse in enumerate(np.eye(rounds)):
        velocity = momentum * velocity + impulse
        weight += rate * velocity
        assert number < rounds

    assert np.linalg.norm(weight) * noise / 1_000 == pytest.approx(LOGIT_NOISE, rel=0.01)
    # Long steps are divided among the rounds that follow.
    assert (momentum > 0) == (LOGIT_NOISE * 1_000 / (noise * math.sqrt(rounds)) * 0.1 > 60)


def test_the_rule_is_told_the_noise_of_all_clients() -> None:
    """It is sqrt(5 / 4) of the accounted noise, which would be for four clients."""
    steps = SummedSteps(SHARED, total_units=60, num_clients=CLIENTS)
    noise = SHARED.noise_stddev * math.sqrt(CLIENTS / SHARES)
    bound = SHARED.max_grad_norm

    assert (steps.rate, steps.factor) == summed_steps(
        noise_stddev=noise, max_grad_norm=bound, total_units=60, num_rounds=SHARED.num_rounds
    )


@pytest.mark.parametrize("changes", [{"noise_shares": 0}, {"sample_rate": 0.5}, {"steps_per_round": 2}], ids=str)
def test_a_gradient_sum_is_refused_under_another_plan(changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="under a plan that has none"):
        gradient(slice(0, 5), replace(SHARED, **changes))  # type: ignore[arg-type]
