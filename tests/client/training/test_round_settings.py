"""The settings of one round: taken from the configuration, with the schedule worked by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from client.training.round_settings import schedule_factor, settings_of
from common.config.schema import RunConfig

MakeConfig = Callable[..., RunConfig]


def config_of(make_config: MakeConfig, **more: Any) -> RunConfig:
    return make_config({"num-rounds": 10} | more)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {1: 1.0, 5: 1.0, 10: 1.0}),
        ("linear", 0, {1: 1.0, 2: 0.9, 6: 0.5, 10: 0.1}),
        ("cosine", 0, {1: 1.0, 6: 0.5, 3: 0.9045085, 9: 0.0954915}),
        ("constant", 4, {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 1.0}),
        ("linear", 2, {1: 0.5, 2: 1.0, 3: 1.0, 4: 0.875, 10: 0.125}),
        ("cosine", 2, {2: 1.0, 3: 1.0, 7: 0.5}),
        ("linear", 50, {1: 0.1, 10: 1.0}),
    ],
)
def test_schedule_factor_equals_the_numbers_worked_by_hand(
    make_config: MakeConfig, schedule: str, warmup: int, expected: dict[int, float]
) -> None:
    config = config_of(make_config, **{"training.schedule": schedule, "training.warmup-rounds": warmup})

    for server_round, factor in expected.items():
        assert schedule_factor(config.training, num_rounds=10, server_round=server_round) == pytest.approx(
            factor, abs=1e-6
        )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 9, 10, 11])
def test_schedule_factor_is_positive_and_at_most_one(make_config: MakeConfig, schedule: str, warmup: int) -> None:
    config = config_of(make_config, **{"training.schedule": schedule, "training.warmup-rounds": warmup})

    factors = [
        schedule_factor(config.training, num_rounds=10, server_round=server_round) for server_round in range(1, 11)
    ]

    assert all(0 < factor <= 1 for factor in factors)
    after = factors[min(warmup, 9) :]
    assert after == sorted(after, reverse=True)


def test_settings_hold_what_the_configuration_says(make_config: MakeConfig) -> None:
    config = config_of(
        make_config,
        **{
            "model.tuning": "norm",
            "training.learning-rate": 0.4,
            "training.schedule": "linear",
            "training.momentum": 0.9,
            "training.local-epochs": 3,
            "training.batch-size": 17,
            "training.weight-decay": 0.01,
            "training.label-smoothing": 0.1,
            "training.augmentation": "crop, flip",
            "training.rotation-weight": 0.25,
            "training.autocast": "bfloat16",
            "system.physical-batch-size": 5,
        },
    )

    local = settings_of(config, server_round=6, stream=b"views")

    assert local.learning_rate == pytest.approx(0.2)
    assert (local.momentum, local.epochs, local.batch_size, local.optimizer) == (0.9, 3, 17, "sgd")
    assert (local.weight_decay, local.label_smoothing, local.rotation_weight) == (0.01, 0.1, 0.25)
    assert (local.augmentation, local.autocast, local.physical_batch_size) == (("crop", "flip"), "bfloat16", 5)
    assert local.stream == b"views"


def test_proximal_term_belongs_to_fedprox_alone(make_config: MakeConfig) -> None:
    without = settings_of(config_of(make_config), server_round=1)
    with_term = settings_of(
        config_of(make_config, **{"strategy.name": "FedProx", "strategy.proximal-mu": 0.3}), server_round=1
    )

    assert without.proximal_mu == 0.0
    assert with_term.proximal_mu == 0.3


def test_settings_are_hashable_so_that_checks_can_be_remembered(make_config: MakeConfig) -> None:
    assert hash(settings_of(config_of(make_config), server_round=1)) == hash(
        settings_of(config_of(make_config), server_round=1)
    )
