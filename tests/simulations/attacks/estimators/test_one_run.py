"""One-run bounds: published figures, hand solutions, and attackers of known strength."""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from common.errors import ConfigError
from simulations.attacks.estimators.gaussian_dp import epsilon_of_mu
from simulations.attacks.estimators.one_run import (
    one_run_epsilon_lower_bound,
    one_run_mu_lower_bound,
    refutes_trade_off,
)

ASKED = {"delta": 1e-5, "confidence": 0.95}


def right_guesses(generator: np.random.Generator, mu: float, num_guesses: int, num_canaries: int = 1000) -> int:
    """An attacker who sees each canary in its own unit Gaussian noise and guesses the clearest ones."""
    inside = generator.random(num_canaries) < 0.5
    scores = mu * inside + generator.normal(size=num_canaries) - mu / 2
    clearest = np.argsort(-np.abs(scores))[:num_guesses]
    return int(((scores > 0) == inside)[clearest].sum())


def test_published_figures_are_met() -> None:
    assert one_run_epsilon_lower_bound(1000, 100, 100, **ASKED).epsilon == pytest.approx(3.47, abs=0.01)
    assert one_run_mu_lower_bound(1000, 100, 100, **ASKED).epsilon == pytest.approx(5.55, abs=0.01)


def test_epsilon_equals_the_hand_solution_when_all_are_right_and_delta_is_nothing() -> None:
    accuracy = 0.05 ** (1 / 50)

    found = one_run_epsilon_lower_bound(1000, 50, 50, delta=0.0, confidence=0.95)

    assert found.epsilon == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-5)


def test_one_canary_that_is_guessed_needs_only_its_own_accuracy() -> None:
    # One coin guessed right refutes at 40 % every accuracy below 0.6.
    found = one_run_epsilon_lower_bound(1, 1, 1, delta=0.0, confidence=0.4)

    assert found.epsilon == pytest.approx(math.log(0.6 / 0.4), abs=1e-5)


def test_nothing_is_refuted_by_a_coin() -> None:
    assert one_run_epsilon_lower_bound(1000, 100, 50, **ASKED).epsilon == 0.0
    assert one_run_epsilon_lower_bound(1000, 100, 0, **ASKED).epsilon == 0.0
    assert one_run_mu_lower_bound(1000, 100, 50, **ASKED).epsilon == 0.0


@pytest.mark.parametrize("bound", [one_run_epsilon_lower_bound, one_run_mu_lower_bound])
def test_bounds_grow_with_right_guesses_and_shrink_with_confidence(bound) -> None:
    found = [bound(1000, 100, right, **ASKED).epsilon for right in (90, 96, 98, 99, 100)]

    assert found == sorted(found)
    assert found[-1] > found[-2]
    assert bound(1000, 100, 100, delta=1e-5, confidence=0.99).epsilon < found[-1]


def test_a_larger_delta_pays_for_more() -> None:
    small, large = (
        one_run_epsilon_lower_bound(1000, 100, 100, delta=delta, confidence=0.95).epsilon for delta in (1e-7, 1e-5)
    )

    assert large < small


def test_trade_off_of_a_gaussian_is_refuted_up_to_the_bound_on_mu() -> None:
    mu = one_run_mu_lower_bound(1000, 100, 99, **ASKED).mu
    assert mu is not None

    def refuted(other: float) -> bool:
        return refutes_trade_off(
            1000, 100, 99, trade_off=lambda rate: float(ndtr(-ndtri(rate) - other)), confidence=0.95
        )

    assert refuted(mu - 1e-3)
    assert not refuted(mu + 1e-3)


def test_total_leak_is_never_refuted() -> None:
    assert not refutes_trade_off(1000, 100, 100, trade_off=lambda rate: 0.0, confidence=0.95)


@pytest.mark.parametrize("num_guesses", [20, 100, 1000])
def test_bounds_stay_below_the_truth_as_often_as_stated(num_guesses: int) -> None:
    generator = np.random.default_rng(3)
    truth = epsilon_of_mu(1.0, delta=1e-5)
    repetitions = 2000
    above_mu = above_epsilon = 0
    for _ in range(repetitions):
        right = right_guesses(generator, 1.0, num_guesses)
        above_mu += one_run_mu_lower_bound(1000, num_guesses, right, **ASKED).epsilon > truth
        above_epsilon += one_run_epsilon_lower_bound(1000, num_guesses, right, **ASKED).epsilon > truth

    assert max(above_mu, above_epsilon) <= repetitions * 0.05


def test_gross_faults_are_found_and_faults_of_a_third_are_mostly_not() -> None:
    generator = np.random.default_rng(4)
    declared = 1.0

    def found(noise_factor: float) -> float:
        alarms = 0
        for _ in range(500):
            right = right_guesses(generator, declared / noise_factor, 100)
            alarms += (one_run_mu_lower_bound(1000, 100, right, **ASKED).mu or 0.0) > declared
        return alarms / 500

    assert found(0.3) >= 0.95
    assert found(0.7) < 0.5  # the price of one run: reports must not promise more


@pytest.mark.parametrize("numbers", [(10, 11, 5), (10, 5, 6), (10, 0, 0), (10, 5, -1)])
def test_impossible_numbers_are_refused(numbers: tuple[int, int, int]) -> None:
    for bound in (one_run_epsilon_lower_bound, one_run_mu_lower_bound):
        with pytest.raises(ConfigError, match="impossible"):
            bound(*numbers, **ASKED)


def test_levels_out_of_range_are_refused() -> None:
    for delta, confidence in ((1.0, 0.95), (-1e-9, 0.95), (0.0, 1.0), (float("nan"), 0.95)):
        with pytest.raises(ConfigError):
            one_run_epsilon_lower_bound(10, 5, 5, delta=delta, confidence=confidence)
