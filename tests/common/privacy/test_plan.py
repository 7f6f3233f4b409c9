"""The plan: everything from public constants, never above the target.

They are those of `common.privacy.public_constants`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import DISCRETIZATION, pld_epsilon, spent_by
from common.privacy.calibration import LEAST_COUNTS_NOISE, calibrate
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.counts.discrete_gaussian import sampled_stddev
from common.privacy.events import DpSgdEvent
from common.privacy.plan import PrivacyPlan, round_up_rate

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("target", [0.5, 8.0])
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


BEFORE: dict[str, Scalar] = {"privacy.counts-noise": 25.0, "privacy.closing-noise": 4.0}


def counts_of(config: RunConfig) -> CountsPlan:
    counts = config.plan(300).counts
    assert counts is not None
    return counts


def held_out_epsilon(counts: CountsPlan) -> float:
    return spent_by(counts.events(), delta=1e-5).pld


@pytest.mark.parametrize("target", [8.0, 0.5])
def test_noise_of_counts_follows_from_the_target(make_config: MakeConfig, target: float) -> None:
    counts = counts_of(make_config({"privacy.target-epsilon": target}))

    assert 0.995 * target <= held_out_epsilon(counts) <= target
    # The sampler draws exactly what the accountant was told.
    for noise in (counts.noise_stddev, counts.closing_noise_stddev):
        assert noise >= LEAST_COUNTS_NOISE
        assert float(sampled_stddev(noise)) == noise


def test_noise_of_counts_that_was_written_is_kept_and_raised_for_the_target(make_config: MakeConfig) -> None:
    kept = counts_of(make_config(BEFORE))
    raised = counts_of(make_config(BEFORE | {"privacy.target-epsilon": 0.5}))

    assert kept == CountsPlan(30, 25.0, 4.0)
    assert raised.noise_stddev / raised.closing_noise_stddev == pytest.approx(25 / 4, rel=1e-3)
    assert raised.noise_stddev > 25
    assert held_out_epsilon(raised) <= 0.5


@pytest.mark.parametrize(
    ("key", "value"), [("counts-noise", 25.0), ("closing-noise", 1.0), ("counts-noise", 2.0), ("closing-noise", 0.6)]
)
def test_one_noise_of_counts_can_be_written_alone(make_config: MakeConfig, key: str, value: float) -> None:
    counts = counts_of(make_config({f"privacy.{key}": value}))

    assert held_out_epsilon(counts) <= 8.0
    assert (counts.noise_stddev if key == "counts-noise" else counts.closing_noise_stddev) >= value


def test_noise_of_counts_without_a_target_is_the_default(make_config: MakeConfig) -> None:
    config = make_config({"privacy.noise-multiplier": 3.0})

    assert counts_of(config) == CountsPlan(30, 25.0, 4.0)
    assert (resolved(config)["privacy.counts-noise"], resolved(config)["privacy.closing-noise"]) == (25.0, 4.0)


def test_a_plan_that_counts_every_fifth_round_has_less_noise(make_config: MakeConfig) -> None:
    plan = make_config({"evaluation.every": 5}).plan(300)
    every_round = make_config().plan(300)

    assert (plan.counts.num_rounds, plan.counts.every) == (6, 5)
    assert plan.counts.noise_stddev < 0.6 * every_round.counts.noise_stddev
    assert plan.counts.closing_noise_stddev < every_round.counts.closing_noise_stddev
    assert plan.num_counted(range(1, 31)) == 6
    assert [plan.num_counted([number]) for number in (4, 5, 6, 10)] == [0, 1, 0, 1]
    assert plan.spent(30).pld == plan.spent().pld <= 8.0


def test_a_client_of_a_part_of_the_rounds_is_counted_no_more_often_than_it_takes_part(make_config: MakeConfig) -> None:
    config = make_config({"evaluation.every": 2, "num-rounds": 10, "num-clients": 10, "client-fraction": 0.3})

    assert counts_of(config).num_rounds == config.participations == 3


def test_only_a_plan_that_does_not_count_each_round_stores_it(make_config: MakeConfig) -> None:
    every_round, seldom = (make_config({"evaluation.every": every}).plan(300) for every in (1, 5))

    assert set(every_round.as_json()["counts"]) == {"num_rounds", "noise_stddev", "closing_noise_stddev"}
    assert seldom.as_json()["counts"]["every"] == 5
    # Stored events name the sampler, and a stored plan does not.
    stored = [replace(plan, sampler=0) for plan in (every_round, seldom)]
    assert [PrivacyPlan.from_json(plan.as_json()) for plan in stored] == stored
    # A server that changed the rounds of counts within a run would ask for another plan.
    shifted = replace(seldom, counts=replace(seldom.counts, every=4))
    assert shifted.digest != seldom.digest


LABELS: dict[str, Scalar] = {"training.class-weights": "balanced"}


@pytest.mark.parametrize("settings", [{}, {"training.batch-size": 64, "training.local-epochs": 2}], ids=["full", "64"])
@pytest.mark.parametrize("target", [8.0, 1.0])
def test_label_counts_and_steps_meet_the_target_together(
    make_config: MakeConfig, target: float, settings: dict[str, Scalar]
) -> None:
    plan = make_config(LABELS | settings | {"privacy.target-epsilon": target}).plan(300)
    without = make_config(settings | {"privacy.target-epsilon": target}).plan(300)

    assert 0.99 * target < spent_by(plan.training_events(), delta=1e-5).pld <= target
    assert plan.spent().pld <= target
    assert 1.03 < plan.noise_multiplier / without.noise_multiplier < 1.09
    assert plan.label_noise_stddev == sampled_stddev(3.0 * calibrate(1.0, 1, target, 1e-5))
    assert spent_by(plan.label_events(), delta=1e-5).pld < 0.35 * target


def test_label_noise_without_a_target_follows_from_the_noise_of_the_steps(make_config: MakeConfig) -> None:
    settings: dict[str, Scalar] = LABELS | {"privacy.noise-multiplier": 6.0, "num-rounds": 9}
    full = make_config(settings).plan(300)
    sampled = make_config(settings | {"training.batch-size": 64, "training.local-epochs": 1}).plan(300)

    assert full.noise_multiplier == sampled.noise_multiplier == 6.0
    assert full.label_noise_stddev == pytest.approx(3 * 6 / 3, abs=1e-3)
    steps = 9 * sampled.steps_per_round
    assert sampled.label_noise_stddev == pytest.approx(3 * 6 / (sampled.sample_rate * math.sqrt(steps)), abs=1e-3)


def test_label_counts_are_charged_from_the_first_round_on_and_once(make_config: MakeConfig) -> None:
    plan = make_config(LABELS | {"privacy.noise-multiplier": 6.0}).plan(300)
    (labels,) = plan.label_events()

    assert plan.training_events(0) == (plan.event(0),)
    assert plan.training_events(1) == (plan.event(1), labels)
    assert plan.training_events() == plan.training_events(30) == (plan.event(30), labels)
    assert plan.spent(0).pld < spent_by([labels], delta=1e-5).pld < plan.spent(1).pld


@pytest.mark.parametrize("settings", [{"training.class-weights": "1,2"}, {}], ids=str)
def test_only_a_plan_that_counts_labels_stores_their_noise(
    make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    same: dict[str, Scalar] = {"privacy.noise-multiplier": 6.0, "privacy.max-grad-norm": 0.1}
    plain, plan = make_config(same | settings).plan(300), make_config(same | LABELS).plan(300)

    assert "label_noise_stddev" not in plain.as_json()
    assert replace(plan, label_noise_stddev=None).digest == plain.digest != plan.digest
    assert PrivacyPlan.from_json(replace(plan, sampler=0).as_json()) == replace(plan, sampler=0)


def test_noise_at_the_server_needs_no_label_counts(make_config: MakeConfig) -> None:
    central = make_config({"privacy.mechanism": "client-dp", "privacy.delta": 1e-4} | LABELS)

    assert central.plan(central.cohort_size).label_events() == ()
