"""Candidates are settings that `bract simulate` takes, each with its own plan.

Drives `simulations.advice.candidates`.
"""

import math

import pytest

from common.config.loading import Scalar, defaults, override, parse
from simulations.advice.candidates import Candidate, candidates
from simulations.advice.federation import SizeGroup

GIVEN: dict[str, Scalar] = {"num-clients": 4, "privacy.target-epsilon": 2.0, "privacy.secure-honest": 3}
GROUPS = (SizeGroup(3, 60), SizeGroup(1, 300))


def named(**more: Scalar) -> dict[str, Candidate]:
    return {choice.name: choice for choice in candidates({**GIVEN, **more}, GROUPS)[0]}


def test_candidates_have_every_mechanism_aggregation_and_number_of_rounds() -> None:
    found = named()

    assert {
        "dp-sgd, 10 rounds",
        "dp-sgd, 30 rounds",
        "dp-sgd, secure, 10 rounds",
        "dp-sgd, secure, 60 rounds",
        "dp-statistics, 1 round",
    } <= found.keys()
    assert not any(choice.protects_clients for choice in found.values())


def test_plans_are_those_of_the_run_itself() -> None:
    choice = named()["dp-sgd, 30 rounds"]

    run = parse(override(defaults(), {**GIVEN, **choice.settings}))
    for plan, group in zip(choice.plans, GROUPS, strict=True):
        theirs = run.plan(group.num_units)
        assert (plan.noise_multiplier, plan.learning_rate) == (theirs.noise_multiplier, theirs.learning_rate)
        assert plan.steps_per_round == theirs.steps_per_round


def test_the_noise_of_a_sum_is_that_of_all_who_draw_it() -> None:
    found = named()
    own, shared = found["dp-sgd, 30 rounds"], found["dp-sgd, secure, 30 rounds"]

    assert own.noise_of_sum(4) == pytest.approx(own.plans[0].noise_stddev * 2)
    assert shared.noise_of_sum(4) == pytest.approx(shared.plans[0].noise_stddev * math.sqrt(4 / 3))


def test_written_rounds_are_the_only_ones() -> None:
    assert {choice.num_rounds for choice in named(**{"num-rounds": 7}).values()} == {1, 7}


def test_whole_clients_are_protected_only_among_many() -> None:
    given: dict[str, Scalar] = {"num-clients": 200, "num-rounds": 5}

    found, _ = candidates(given, [SizeGroup(200, 20)])

    central, shared = (choice for choice in found if choice.protects_clients)
    assert [central.name, shared.name] == ["client-dp, 5 rounds", "client-dp, secure, 5 rounds"]
    assert shared.plans[0].num_units == 200
    assert shared.noise_of_sum(200) > 1.1 * shared.plans[0].noise_stddev
    assert central.plans[0].num_units == 200
    # The server draws the noise once, not each of the clients.
    assert central.noise_of_sum(200) == pytest.approx(central.plans[0].noise_stddev)


def test_what_is_not_possible_is_left_out_with_the_reason() -> None:
    found, left_out = candidates({"num-clients": 2}, [SizeGroup(2, 60)])

    assert "needs 2 honest clients" in left_out["dp-sgd secure"]
    assert {choice.config.privacy.aggregation for choice in found} == {"plain"}
