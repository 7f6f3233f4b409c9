"""Accounting of a run and what it states.

Drives `server.state.privacy_spent`.
"""

import math
from collections.abc import Callable
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from common.config.schema import RunConfig
from common.privacy.batched_gradients import IN_WORDS
from common.privacy.noise_error import FLOATING_POINT
from server.reporting.privacy_statement import Parties, privacy_statement
from server.state.privacy_spent import account, epsilon_so_far

MakeConfig = Callable[..., RunConfig]
UNITS = {"00000": 300, "00001": 90, "00002": 500}


def cohorts(rounds: int) -> list[list[str]]:
    return [["00000", "00001"], ["00002"]] * (rounds // 2)


def config(make_config: MakeConfig, rounds: int = 4) -> RunConfig:
    return make_config(
        {"privacy.noise-multiplier": 2.0, "num-rounds": rounds, "num-clients": 3, "client-fraction": 0.7}
    )


def test_account_charges_each_client_for_the_rounds_it_was_asked(make_config: MakeConfig) -> None:
    privacy_cost = account(config(make_config), UNITS, cohorts(4), complete=True)

    assert {name: share.rounds for name, share in privacy_cost.shares.items()} == {"00000": 2, "00001": 2, "00002": 2}
    assert privacy_cost.epsilon_max == max(share.spent.pld for share in privacy_cost.shares.values())


def test_account_equals_an_independent_pld_over_all_rounds(make_config: MakeConfig) -> None:
    privacy_cost = account(config(make_config), UNITS, cohorts(4), complete=True)

    for share in privacy_cost.shares.values():
        plan = share.plan
        accountant = PLDAccountant(value_discretization_interval=1e-4)
        for _ in range(share.rounds):
            step = dp_accounting.PoissonSampledDpEvent(plan.sample_rate, dp_accounting.GaussianDpEvent(2.0))
            accountant.compose(step, plan.steps_per_round)
        theirs = accountant.get_epsilon(1e-5)
        assert theirs - 1e-9 <= share.spent.pld <= theirs * 1.002


@pytest.mark.parametrize("settings", [{}, {"training.batch-size": 20}, {"privacy.metrics": "none"}], ids=str)
def test_epsilon_so_far_grows_to_that_of_the_whole_plan(make_config: MakeConfig, settings: dict[str, Any]) -> None:
    run = make_config(
        {"privacy.noise-multiplier": 8.0, "num-rounds": 4, "num-clients": 3, "client-fraction": 0.7} | settings
    )
    whole, sent = account(run, UNITS, cohorts(4), complete=False), cohorts(4)

    found = [epsilon_so_far(whole, sent[:number]) for number in range(5)]

    assert found[0] == 0.0
    assert found == sorted(found)
    assert found[-1] <= whole.epsilon_max
    for number in range(1, 5):
        # Never below what the tighter accountant finds of the worst client.
        spent = account(run, UNITS, sent[:number], complete=True)
        so_far = max(
            share.plan.spent(share.rounds, share.counted, closing=False).pld for share in spent.shares.values()
        )
        assert so_far - 1e-9 <= found[number]


def test_epsilon_so_far_is_the_cost_of_the_client_that_was_asked_most(make_config: MakeConfig) -> None:
    whole = account(config(make_config, 8), UNITS, cohorts(8), complete=False)

    even, uneven = (epsilon_so_far(whole, sent) for sent in ([["00000"], ["00001"]], [["00000"], ["00000"]]))

    assert even < uneven < whole.epsilon_max


def test_account_of_twice_the_rounds_is_more_at_the_same_noise(make_config: MakeConfig) -> None:
    few = account(config(make_config, 4), UNITS, cohorts(4), complete=True)
    many = account(config(make_config, 8), UNITS, cohorts(8), complete=True)

    assert all(many.shares[name].spent.pld > few.shares[name].spent.pld for name in UNITS)


def test_account_of_a_run_that_stopped_early_charges_the_whole_plan(make_config: MakeConfig) -> None:
    stopped = account(config(make_config), UNITS, cohorts(4)[:1], complete=False)

    assert {share.rounds for share in stopped.shares.values()} == {config(make_config).participations}


@pytest.mark.parametrize("mechanism", ["dp-sgd", "client-dp"])
def test_privacy_statement_has_the_bound_of_the_noise_that_its_events_give(
    make_config: MakeConfig, mechanism: str
) -> None:
    run = make_config(
        {"privacy.noise-multiplier": 2.0, "num-rounds": 4, "num-clients": 3, "client-fraction": 0.7}
        | {"privacy.mechanism": mechanism, "privacy.delta": 1e-5}
    )
    found = privacy_statement(run, account(run, UNITS, cohorts(4), complete=True), status="complete")

    # From the statement alone: 2^-448 for each draw, times 1 + e^201.
    draws = [
        sum(event["steps"] * event["draws-per-step"] for event in client["events"]["training"])
        for client in found["clients"].values()
    ]
    assert found["floating_point"].endswith("its error is bounded, and charged in delta")
    assert found["noise_error"]["draws"] == max(draws) >= 4 * 2**31
    assert found["noise_error"]["total_variation_per_draw"] == 2.0**-448
    assert found["noise_error"]["delta_noise"] == pytest.approx((1 + math.exp(201)) * max(draws) * 2.0**-448, rel=1e-12)
    assert found["noise_error"]["delta_noise"] < 1e-9 * run.privacy.delta


def test_privacy_statement_of_a_run_that_began_with_the_old_noise_claims_no_bound(make_config: MakeConfig) -> None:
    run = config(make_config)
    old = account(run, UNITS, cohorts(4), complete=True, sampler=FLOATING_POINT)

    found = privacy_statement(run, old, status="complete")

    assert found["floating_point"] == "noise on a grid, counted in the multiplier: a mitigation, not a proof"
    assert "noise_error" not in found
    assert list(found["clients"]["00001"]["events"]["training"][0]) == [
        "kind",
        "sample-rate",
        "noise-multiplier",
        "steps",
        "group-size",
    ]


def test_privacy_statement_says_what_is_not_protected(make_config: MakeConfig) -> None:
    run = config(make_config)
    statement = privacy_statement(run, account(run, UNITS, cohorts(4), complete=True), status="complete")

    assert statement["private"] is True
    assert "signed heads" in statement["ledger"]
    assert any("3 of 3 clients have not pinned it" in line for line in statement["not_protected"])
    assert {"mechanism", "privacy_unit", "neighboring_relation", "sampling_method", "accountant"} <= set(statement)


@pytest.mark.parametrize(("loose", "said"), [((), None), (("x",), "1 of 3 clients have not pinned it")])
def test_privacy_statement_says_who_trusts_the_servers_code(
    make_config: MakeConfig, loose: tuple[str, ...], said: str | None
) -> None:
    run, names = config(make_config), list(UNITS)
    bundles = {name: "" if place < len(loose) else "ab" * 32 for place, name in enumerate(names)}
    privacy_cost = account(run, UNITS, cohorts(4), complete=True)

    statement = privacy_statement(run, privacy_cost, status="complete", parties=Parties(bundles=bundles))

    lines = [line for line in statement["not_protected"] if "pinned" in line]
    assert [said in line for line in lines if said] == ([True] if said else [])
    assert len(lines) == len(loose)
    assert statement["bundles"] == bundles


@pytest.mark.parametrize("named", ["auto", "opacus"])
def test_privacy_statement_says_that_rounding_in_batches_is_not_covered(make_config: MakeConfig, named: str) -> None:
    before = config(make_config)
    run = before.model_copy(update={"training": before.training.model_copy(update={"gradients": named})})

    statement = privacy_statement(run, account(run, UNITS, cohorts(4), complete=True), status="complete")

    batched = named == "opacus"
    assert ("the ROUNDING of gradients in batches (Opacus) is not covered" in statement["statement"]) == batched
    assert any("make it larger than the clip bound" in line for line in statement["not_protected"]) == batched
    assert statement.get("gradients") == (IN_WORDS if batched else None)


def test_privacy_statement_without_a_mechanism_says_not_private(make_config: MakeConfig) -> None:
    statement = privacy_statement(make_config({"privacy.mechanism": "none"}), None, status="complete")

    assert statement["private"] is False
    assert "NOT PRIVATE" in str(statement["statement"])


@pytest.mark.parametrize("seed", [0, 1])
def test_system_settings_and_seed_cannot_change_epsilon(make_config: MakeConfig, seed: int) -> None:
    changed = make_config(
        {"privacy.noise-multiplier": 2.0, "num-rounds": 4, "num-clients": 3, "client-fraction": 0.7}
        | {"system.device": "cpu", "seed": seed}
    )

    ours, theirs = (account(run, UNITS, cohorts(4), complete=True).shares for run in (changed, config(make_config)))
    assert ours == theirs
