"""The plan: everything from public constants, never above the target."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.schema import RunConfig
from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import DISCRETIZATION, pld_epsilon
from common.privacy.calibration import calibrate
from common.privacy.events import DpSgdEvent
from common.privacy.plan import round_up_rate

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("target", [0.5, 1.0, 8.0, 30.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 120), (0.2, 600), (0.01, 2000)])
def test_calibrate_never_overshoots_and_wastes_little(target: float, rate: float, steps: int) -> None:
    noise = calibrate(rate, steps, target, 1e-5)

    epsilon = pld_epsilon((DpSgdEvent(rate, noise, steps),), 1e-5, DISCRETIZATION)
    assert 0.98 * target < epsilon <= target


def test_calibrate_says_so_when_no_noise_is_enough() -> None:
    with pytest.raises(ConfigError, match="target-epsilon"):
        calibrate(1.0, 100, 1e-5, 1e-5)


@given(st.floats(min_value=1e-6, max_value=5.0))
def test_round_up_rate_is_close_from_above(rate: float) -> None:
    rounded = round_up_rate(rate)

    assert min(rate, 1.0) * (1 - 1e-6) <= rounded <= min(1.0, rate * 2 ** (1 / 16) * (1 + 1e-6))
    assert round_up_rate(rounded) == rounded


def test_plan_for_composes_over_all_rounds(make_config: MakeConfig) -> None:
    plan = make_config().plan(360)

    assert plan.epsilon() <= 8.0
    assert plan.epsilon(15) < plan.epsilon(30) == plan.epsilon()
    assert plan.event().steps == 30 * plan.steps_per_round


def test_plan_for_twice_the_rounds_spends_more_at_the_same_noise(make_config: MakeConfig) -> None:
    few, many = (make_config({"privacy.noise-multiplier": 3.0, "num-rounds": rounds}).plan(300) for rounds in (5, 10))

    assert many.epsilon() > few.epsilon()
    assert many.noise_multiplier == few.noise_multiplier == 3.0


def test_plan_for_depends_on_public_constants_only(make_config: MakeConfig) -> None:
    plan = make_config({"privacy.noise-multiplier": 2.0, "training.batch-size": 50, "training.local-epochs": 4}).plan(
        400
    )

    assert plan.sample_rate == round_up_rate(50 / 400)
    assert plan.expected_batch_size == plan.sample_rate * 400
    assert plan.steps_per_round == 4 * math.ceil(1 / plan.sample_rate)
    assert plan.noise_stddev == pytest.approx(2.0 * 0.1 * 1.0001)


def test_plan_for_a_client_smaller_than_the_batch_takes_all_units(make_config: MakeConfig) -> None:
    plan = make_config({"privacy.noise-multiplier": 2.0, "training.batch-size": 64, "training.local-epochs": 4}).plan(3)

    assert (plan.sample_rate, plan.expected_batch_size, plan.steps_per_round) == (1.0, 3.0, 4)


def test_plan_for_clients_of_similar_size_is_shared(make_config: MakeConfig) -> None:
    config = make_config({"privacy.noise-multiplier": 2.0, "training.batch-size": 64})

    rates = {config.plan(units).sample_rate for units in range(40, 200)}

    assert len(rates) < 30


def test_plan_for_refuses_a_delta_that_permits_publishing_images(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        make_config({"privacy.delta": 0.01}).plan(100)


def test_plan_for_refuses_a_run_without_privacy(make_config: MakeConfig) -> None:
    with pytest.raises(PrivacyError, match="adds no noise"):
        make_config({"privacy.mechanism": "none"}).plan(100)
