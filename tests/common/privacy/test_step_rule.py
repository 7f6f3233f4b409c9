from collections.abc import Callable

import numpy as np
import pytest

from client.training.dp_sgd import PrivateStreams, train_head_privately
from client.training.round_settings import settings_of
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.models.linear_head import HEAD_WEIGHT, initial_head
from common.privacy.calibration import calibrate
from common.privacy.noise import SecureStream
from common.privacy.step_rule import (
    LOGIT_NOISE,
    MAX_UPDATE,
    head_clipping_norm,
    head_learning_rate,
    steps_in_round,
)
from server.aggregation.central_dp import noised_average

MakeConfig = Callable[..., RunConfig]

_RUN: dict[str, Scalar] = {"num-clients": 4, "num-rounds": 6}
_CENTRAL: dict[str, Scalar] = {"privacy.mechanism": "client-dp", "num-clients": 40, "num-rounds": 10}


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy.target-epsilon": 1.0},
        {"privacy.target-epsilon": 8.0, "client-fraction": 0.5},
        {"privacy.noise-multiplier": 5.0, "training.local-epochs": 3},
        {"privacy.noise-multiplier": 5.0, "training.batch-size": 30},
    ],
)
def test_final_head_carries_the_noise_of_the_rule(make_config: MakeConfig, settings: dict[str, Scalar]) -> None:
    config = make_config(_RUN | settings)
    plan, num_units = config.plan(90), 90
    # Black images have no gradient, so all that moves the head is noise.
    black, labels = np.zeros((num_units, 300), dtype=np.float32), np.zeros(num_units, dtype=np.int64)
    total = np.zeros((10, 300))

    for server_round in range(1, config.num_rounds + 1):
        local = settings_of(config, server_round=server_round, plan=plan)
        for _ in range(config.cohort_size):
            moved = train_head_privately(initial_head(300, 10), black, labels, plan, local, PrivateStreams.fresh())
            total += moved[HEAD_WEIGHT] / config.cohort_size

    # 3,000 weights: the standard error of their deviation is 1.3 %.
    assert total.std() == pytest.approx(LOGIT_NOISE, rel=0.07)


def test_learning_rate_grows_with_the_clients_own_size_and_epsilon(make_config: MakeConfig) -> None:
    run: dict[str, Scalar] = {"training.local-epochs": 1, "num-rounds": 30}

    by_size = [make_config(run).plan(size).learning_rate or 0.0 for size in (100, 200)]
    by_epsilon = [make_config(run | {"privacy.target-epsilon": e}).plan(200).learning_rate or 0.0 for e in (1.0, 2.0)]

    assert by_size[1] == pytest.approx(2 * by_size[0], rel=0.01)
    # Panda et al. 2022: about linear.
    assert by_epsilon[1] == pytest.approx(2 * by_epsilon[0], rel=0.1)


def test_learning_rate_leaves_room_for_momentum_and_has_a_limit() -> None:
    public = {"max_grad_norm": 0.1, "steps_per_round": 4, "num_rounds": 30, "cohort_size": 5}

    plain = head_learning_rate(noise_multiplier=6.0, expected_batch_size=300, momentum=0.0, **public)
    heavy = head_learning_rate(noise_multiplier=6.0, expected_batch_size=300, momentum=0.9, **public)
    huge = head_learning_rate(noise_multiplier=6.0, expected_batch_size=1e9, momentum=0.0, **public)

    assert heavy == pytest.approx(0.1 * plain, rel=0.01)
    assert huge * 0.1 == pytest.approx(150.0)


@pytest.mark.parametrize(
    ("size", "cohort", "steps"),
    [(10, 1, 1), (428, 1, 1), (429, 1, 2), (214, 4, 1), (215, 4, 2), (700, 1, 2), (100_000, 1, 4)],
)
def test_a_longer_way_is_divided_among_more_steps(size: int, cohort: int, steps: int) -> None:
    # One step covers 20 clip bounds: 30 rounds of it are 600 = 1.4 x 428.6 units, over noise 1.
    assert steps_in_round(1.0, num_units=size, num_rounds=30, cohort_size=cohort) == steps


def test_steps_follow_from_all_rounds_and_not_from_those_of_one_client(make_config: MakeConfig) -> None:
    config = make_config({"num-clients": 4, "client-fraction": 0.5, "num-rounds": 40, "privacy.target-epsilon": 4.0})

    noise = calibrate(1.0, 1, 4.0, config.privacy.delta)
    expected = steps_in_round(noise, num_units=600, num_rounds=40, cohort_size=2)
    assert config.plan(600).steps_per_round == expected
    assert steps_in_round(noise, num_units=600, num_rounds=20, cohort_size=2) > expected


def test_written_settings_outrank_the_rule(make_config: MakeConfig) -> None:
    plan = make_config({"training.learning-rate": 64.0, "training.batch-size": 64, "training.local-epochs": 4}).plan(90)

    assert plan.learning_rate is None
    assert plan.steps_per_round == 4 * 2
    assert "learning_rate" not in plan.as_json()


def test_rule_is_for_private_heads_alone(make_config: MakeConfig) -> None:
    assert make_config({"privacy.mechanism": "none"}).training.learning_rate == 32.0
    assert make_config({"training.optimizer": "adamw"}).plan(90).learning_rate is None
    assert make_config({"model.head": "mlp"}).plan(90).learning_rate is None


@pytest.mark.parametrize(
    "settings", [{"privacy.target-epsilon": 4.0}, {"client-fraction": 0.5}, {"privacy.noise-multiplier": 9.0}]
)
def test_final_head_carries_the_noise_of_the_rule_of_the_server(
    make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    config = make_config(_CENTRAL | settings)
    plan, head = config.plan(1), initial_head(300, 10)

    for _ in range(config.num_rounds):
        # No client answers, so all that moves the head is noise.
        head = noised_average(head, [], plan, stream=SecureStream())

    assert head[HEAD_WEIGHT].std() == pytest.approx(LOGIT_NOISE, rel=0.07)


def test_clip_bound_grows_with_the_cohort_up_to_a_limit(make_config: MakeConfig) -> None:
    def bound(num_clients: int) -> float:
        return make_config(_CENTRAL | {"num-clients": num_clients}).plan(1).max_grad_norm

    public = {"noise_multiplier": 5.0, "num_rounds": 10}

    assert bound(40) == pytest.approx(2 * bound(20), rel=0.01)
    assert head_clipping_norm(**public, cohort_size=10**6) == MAX_UPDATE
    # What one client holds is never asked for: the plan is one for all.
    assert make_config(_CENTRAL).plan(1) == make_config(_CENTRAL).plan(1000)


def test_a_written_clip_bound_outranks_the_rule(make_config: MakeConfig) -> None:
    written = make_config(_CENTRAL | {"privacy.clipping-norm": 1.0})

    assert (written.clip_by_rule, written.plan(1).max_grad_norm) == (False, 1.0)
    assert (make_config(_CENTRAL).clip_by_rule, make_config(_CENTRAL).privacy.clipping_norm) == (True, None)


@pytest.mark.parametrize("settings", [{"model.head": "mlp"}, {"model.tuning": "norm"}, {"model.backbone": "cnn"}])
def test_clip_rule_is_for_linear_heads_with_noise_at_the_server(
    make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    assert make_config(_CENTRAL | settings).privacy.clipping_norm == 1.0
    # Old runs' settings are compared with today's, so what is not used keeps its value.
    assert (
        make_config().privacy.clipping_norm == make_config({"privacy.mechanism": "none"}).privacy.clipping_norm == 1.0
    )
