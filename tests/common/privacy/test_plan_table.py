"""The plan before a run: figures worked by hand, and by accountants of other make.

Drives `common.commands.plan_view`, `common.privacy.plan_table`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from common.commands.plan_view import curve_rounds
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.accounting import spent_by
from common.privacy.plan import PrivacyPlan
from common.privacy.plan_table import (
    MAX_SHOWN,
    PlanTable,
    as_json,
    every_round,
    held_out,
    make_table,
    milestones,
    round_ratio,
    step_ratio,
)

MakeConfig = Callable[..., RunConfig]
DELTA = 1e-5
SHORT: dict[str, Scalar] = {"num-rounds": 4, "training.local-epochs": 1, "num-clients": 2}
NOISY = SHORT | {"privacy.noise-multiplier": 4.0}  # with sizes below the batch every unit is in every batch
PLAN = PrivacyPlan("dp-sgd", "image", 320, 0.1, 4, 3, max_grad_norm=0.5, noise_multiplier=2.0, delta=DELTA)


def gaussian_delta(epsilon: float, noise: float) -> float:
    """The exact delta of one Gaussian of sensitivity 1 (Balle and Wang 2018, theorem 8)."""
    phi = NormalDist().cdf
    half = 1 / (2 * noise)
    return phi(half - epsilon * noise) - math.exp(epsilon) * phi(-half - epsilon * noise)


def test_make_table_prices_sampled_batches_as_an_independent_accountant_does(make_config: MakeConfig) -> None:
    (row,) = make_table(make_config(NOISY | {"training.batch-size": 50, "privacy.metrics": "none"}), [200]).rows

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    step = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(4.0))
    for number, steps in ((1, 4), (2, 4), (4, 8)):  # 4 steps a round
        accountant.compose(step, steps)
        assert row.after_rounds[number].pld == pytest.approx(accountant.get_epsilon(DELTA), rel=5e-3)


def test_make_table_prices_rounds_of_full_batches_as_the_closed_form_does(make_config: MakeConfig) -> None:
    (row,) = make_table(make_config(NOISY), [40], rounds=every_round).rows

    for number in (1, 2, 3):
        delta = gaussian_delta(row.after_rounds[number].pld, 4.0 / math.sqrt(number))
        assert delta == pytest.approx(DELTA, rel=1e-2)


def test_make_table_epsilon_grows_over_rounds_and_ends_at_the_whole_plan(make_config: MakeConfig) -> None:
    for row in make_table(make_config(NOISY), [30, 40], rounds=every_round).rows:
        epsilons = [spent.pld for spent in row.after_rounds.values()]

        assert list(row.after_rounds) == [1, 2, 3, 4]
        assert epsilons == sorted(set(epsilons))
        assert row.after_rounds[4] == row.spent == row.plan.spent()
        assert all(spent.rdp > spent.pld for spent in row.after_rounds.values())


def test_make_table_charges_the_closing_matrix_with_the_last_round(make_config: MakeConfig) -> None:
    table = make_table(make_config(NOISY | {"privacy.closing-noise": 1.0}), [40], rounds=every_round)
    counts = held_out(table)

    (row,) = table.rows
    assert counts is not None
    assert row.after_rounds[4].pld == counts["epsilon"] > 4.377  # more than the matrix alone costs
    assert row.after_rounds[3].pld == spent_by([row.plan.event(3)], delta=DELTA).pld < 4


def test_held_out_is_none_where_no_counts_leave(make_config: MakeConfig) -> None:
    assert held_out(make_table(make_config(NOISY | {"privacy.metrics": "none"}), [40])) is None


def test_make_table_says_what_one_more_point_of_epsilon_buys(make_config: MakeConfig) -> None:
    (row,) = make_table(make_config(SHORT), [40]).rows
    other = row.alternative

    assert other is not None
    assert gaussian_delta(8.0, row.plan.noise_multiplier / 2) == pytest.approx(DELTA, rel=2e-2)
    assert gaussian_delta(9.0, other.noise_multiplier / 2) == pytest.approx(DELTA, rel=2e-2)
    assert (1 + other.noise_change) * row.plan.noise_multiplier == pytest.approx(other.noise_multiplier)
    assert -0.15 < other.noise_change < -0.05
    assert (other.epsilon, other.epsilon_change) == (9.0, 1.0)


def test_make_table_says_what_more_noise_buys_where_noise_was_set(make_config: MakeConfig) -> None:
    (row,) = make_table(make_config(NOISY), [40]).rows
    other = row.alternative

    assert other is not None
    assert other.noise_multiplier == pytest.approx(4.4)
    assert gaussian_delta(other.epsilon, 4.4 / 2) == pytest.approx(DELTA, rel=1e-2)
    assert other.epsilon_change == other.epsilon - row.spent.pld < 0


def test_step_ratio_is_that_of_the_lengths() -> None:
    # 32 gradients of length 0.5 against noise of 1.0001 in each of 10,000 directions
    assert step_ratio(PLAN, 10_000) == pytest.approx(32 * 0.5 / (1.0001 * 100))


def test_round_ratio_grows_with_the_root_of_steps_and_of_equal_clients() -> None:
    one_step = step_ratio(PLAN, 10_000)

    assert round_ratio([(PLAN, 1)], 1, 10_000) == pytest.approx(one_step * math.sqrt(4))
    assert round_ratio([(PLAN, 9)], 9, 10_000) == pytest.approx(one_step * math.sqrt(4 * 9))
    assert round_ratio([(PLAN, 1)], 9, 10_000) == pytest.approx(one_step * math.sqrt(4 * 9))


def test_round_ratio_of_clients_of_several_sizes_is_what_averaging_drawn_noise_gives() -> None:
    plans = [PLAN, replace(PLAN, num_units=2000, sample_rate=0.02, steps_per_round=50, noise_multiplier=1.0)]
    counts, parameters = (3, 1), 20_000
    rng, signal, noise, whole = np.random.default_rng(3), 0.0, np.zeros(parameters), 0
    for plan, count in zip(plans, counts, strict=True):
        for _ in range(count):  # one client: mean gradients summed over its steps, weighted by its size
            drawn = rng.normal(0, plan.noise_stddev, (plan.steps_per_round, parameters)).sum(axis=0)
            signal += plan.num_units * plan.steps_per_round * plan.max_grad_norm
            noise += plan.num_units * drawn / plan.expected_batch_size
            whole += plan.num_units
    expected = (signal / whole) / float(np.linalg.norm(noise / whole))

    found = round_ratio(list(zip(plans, counts, strict=True)), 4, parameters)
    assert found == pytest.approx(expected, rel=4 / math.sqrt(2 * parameters))  # four standard errors


def test_make_table_compares_signal_and_noise_only_where_parameters_are_known(make_config: MakeConfig) -> None:
    config = make_config(NOISY)

    without, table = make_table(config, [40]), make_table(config, [40], num_parameters=400)

    assert without.signal_to_noise_a_round is without.rows[0].signal_to_noise is None
    assert table.rows[0].signal_to_noise == pytest.approx(40 / (4 * 1.0001 * 20))
    assert table.signal_to_noise_a_round == pytest.approx(40 / (4 * 1.0001 * 20) * math.sqrt(2))  # two like it


def test_make_table_of_client_dp_is_the_servers_plan(make_config: MakeConfig) -> None:
    config = make_config({"privacy.mechanism": "client-dp", "num-clients": 50, "client-fraction": 0.4, "num-rounds": 5})

    table = make_table(config, (), num_parameters=400)

    (row,) = table.rows
    assert (row.plan, row.num_clients) == (config.plan(config.cohort_size), 50)
    assert list(row.after_rounds) == [1, 2]  # 5 rounds of 20 out of 50
    assert table.signal_to_noise_a_round == row.signal_to_noise == step_ratio(row.plan, 400)
    assert gaussian_delta(8.0, row.plan.noise_multiplier / math.sqrt(2)) == pytest.approx(DELTA, rel=2e-2)


def test_make_table_compares_signal_with_the_noise_of_all_shares_under_client_dp(make_config: MakeConfig) -> None:
    secure = {"privacy.aggregation": "secure", "round-retries": 0}
    config = make_config({"privacy.mechanism": "client-dp", "num-clients": 5, "num-rounds": 2} | secure)

    table = make_table(config, (), num_parameters=400)

    (row,) = table.rows
    noise = row.plan.client_noise_stddev * math.sqrt(5 * 400)
    assert table.signal_to_noise_a_round == pytest.approx(5 * row.plan.max_grad_norm / noise)


def test_make_table_shows_a_few_of_many_sizes_and_counts_equal_ones(make_config: MakeConfig) -> None:
    sizes = [9, 60, 5, *range(10, 50, 2), 60, 60]

    table = make_table(make_config(NOISY | {"num-clients": 30}), sizes)

    assert [row.plan.num_units for row in table.rows] == sorted(set(sizes))
    assert {row.plan.num_units: row.num_clients for row in table.rows}[60] == 3
    shown = [row.plan.num_units for row in table.shown]
    assert (len(shown), shown[0], shown[-1]) == (MAX_SHOWN, 5, 60)
    assert all(row.spent.pld > 0 for row in table.rows)


def test_make_table_tells_its_progress_to_the_end(make_config: MakeConfig) -> None:
    told: list[int] = []

    def progress(total: int, _: str) -> Callable[[int], None]:
        told.append(-total)
        return told.append

    make_table(make_config(NOISY | {"num-clients": 9}), range(1, 10), progress=progress)

    assert sum(told) == 0
    assert len(told) > 9


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"privacy.mechanism": "none"}, "nothing to plan"),
        ({"privacy.delta": 0.002}, r"privacy\.delta=0\.002.*1/800"),
        ({"privacy.target-epsilon": 1e-5}, "cannot be met"),
        ({"privacy.noise-multiplier": 0.05}, "so little noise"),
    ],
)
def test_make_table_refuses_what_cannot_be(make_config: MakeConfig, settings: dict[str, Scalar], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        make_table(make_config(SHORT | settings), [10, 800] if "privacy.delta" in settings else [10])


@pytest.mark.parametrize("last", [1, 2, 3, 7, 10, 30, 999, 1000])
def test_milestones_and_curves_end_at_the_last_round(last: int) -> None:
    few, curve = milestones(last), curve_rounds(last)

    assert list(few) == sorted(set(few))
    assert (few[0], few[-1], curve[-1]) == (1, last, last)
    assert set(few) <= set(curve) <= set(every_round(last))


def test_as_json_states_the_guarantee_and_every_figure(make_config: MakeConfig) -> None:
    table: PlanTable = make_table(make_config(NOISY), [40], num_parameters=400, rounds=every_round)

    facts = json.loads(json.dumps(as_json(table)))

    assert facts["neighboring_relation"] == "add/remove one unit (zero-out)"
    assert (facts["privacy_unit"], facts["delta"], facts["target_epsilon"]) == ("image", DELTA, None)
    assert "PLD" in facts["accountant"]
    assert facts["config"]["privacy.noise-multiplier"] == 4.0
    (row,) = facts["sizes"]
    assert [after["num_rounds"] for after in row["after_rounds"]] == [1, 2, 3, 4]
    assert row["after_rounds"][-1]["epsilon"] == row["epsilon"] == table.rows[0].spent.pld
    assert row["noise_stddev"] == pytest.approx(4.0 * 0.1 * 1.0001)
    assert (row["sample_rate"], row["steps_per_round"], row["num_rounds"]) == (1.0, 1, 4)
