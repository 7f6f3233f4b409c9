"""False alarms and power of the estimators, on synthetic scores at the size of the gate: 10,000 repetitions.

The gate: every unit in each of 4 steps, noise multiplier 1 (mu = 2, epsilon about 10 at
delta 1e-5), 500 scores with the canary and 500 without, alarm level 1e-4, threshold at
the midpoint of what is declared. An alarm is a lower bound above the declared figure.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.special import expit

from simulations.attacks.estimators.binomial import Floats, rate_upper_bounds
from simulations.attacks.estimators.epsilon_delta import epsilon_lower_bound, epsilon_trade_off
from simulations.attacks.estimators.error_rates import bound_mean_error, bound_rates
from simulations.attacks.estimators.gaussian_dp import epsilon_of_mu, gaussian_trade_off, mu_lower_bound
from simulations.attacks.estimators.pld_family import SubsampledGaussians, trade_off_curve
from simulations.attacks.estimators.power import alarm_probability, mean_alarm_probability
from tests.support.simulations.best_attacks import detectable_gaussian, sum_score_rates

MU = 2.0
DELTA = 1e-5
NUM_EACH = 500
REPETITIONS = 10_000
GATE = 1 - 1e-4
FAULT = 0.7
Alarm = Callable[[Floats, Floats], bool]


def score_pairs(noise_factor: float, *, own_units: bool = False, seed: int = 0) -> Iterator[tuple[Floats, Floats]]:
    """Scores of one audit after another.

    A fault makes scores narrower in units of the declared noise, or moves them apart in
    units of the true noise (`own_units`); the distance over the width is the same.
    """
    generator = np.random.default_rng(seed)
    width, distance = (1.0, MU / noise_factor) if own_units else (noise_factor, MU)
    for _ in range(REPETITIONS // 500):
        noise = width * generator.normal(size=(500, 2, NUM_EACH))
        for inside, outside in noise:
            yield inside + distance, outside


def rate_of(alarm: Alarm, scores: Iterator[tuple[Floats, Floats]]) -> float:
    return sum(alarm(inside, outside) for inside, outside in scores) / REPETITIONS


def mean_alarm(confidence: float) -> Alarm:
    return lambda inside, outside: (
        mu_lower_bound(bound_mean_error(inside, outside, confidence=confidence, threshold=MU / 2)).mu > MU
    )


def rates_alarm(confidence: float, threshold: float | None = MU / 2) -> Alarm:
    return lambda inside, outside: (
        mu_lower_bound(bound_rates(inside, outside, confidence=confidence, threshold=threshold)).mu > MU
    )


def at_most(level: float) -> float:
    """Nominal, and three standard errors of the measured rate."""
    return level + 3 * (level * (1 - level) / REPETITIONS) ** 0.5


@pytest.mark.parametrize("alarm", [mean_alarm, rates_alarm])
@pytest.mark.parametrize("own_units", [False, True])
def test_fault_is_found_at_the_gate(alarm: Callable[[float], Alarm], own_units: bool) -> None:
    assert rate_of(alarm(GATE), score_pairs(FAULT, own_units=own_units)) >= 0.95


@pytest.mark.parametrize("alarm", [mean_alarm, rates_alarm])
@pytest.mark.parametrize("level", [0.05, 1e-4])
def test_alarms_without_a_fault_stay_at_the_nominal_level(alarm: Callable[[float], Alarm], level: float) -> None:
    assert rate_of(alarm(1 - level), score_pairs(1.0, seed=1)) <= at_most(level)


def test_pooled_errors_use_up_their_level() -> None:
    assert rate_of(mean_alarm(0.95), score_pairs(1.0, seed=2)) == pytest.approx(0.047, abs=0.01)


def test_chosen_threshold_keeps_the_level_and_finds_less() -> None:
    chosen = rates_alarm(0.95, threshold=None)

    assert rate_of(chosen, score_pairs(1.0, seed=3)) <= at_most(0.05)
    assert rate_of(chosen, score_pairs(FAULT, seed=4)) >= 0.95
    assert rate_of(rates_alarm(GATE, threshold=None), score_pairs(FAULT, seed=5)) < 0.6


@pytest.mark.parametrize("level", [0.05, 1e-4])
def test_false_alarms_stay_below_the_level_when_every_outcome_is_added_up(level: float) -> None:
    for mu in (0.5, 1.0, 2.0, 3.0):
        pooled, apart = (
            detectable_gaussian(mu, num_in=NUM_EACH, num_out=NUM_EACH, confidence=1 - level, pooled=pooled)
            for pooled in (True, False)
        )
        assert apart.false_alarm <= pooled.false_alarm <= level


def test_computed_power_agrees_with_measured_power() -> None:
    for factor, confidence, alarm in ((0.75, GATE, rates_alarm), (0.8, GATE, mean_alarm)):
        rate = float(gaussian_trade_off(0.5, mu=1 / factor))  # both rates at the midpoint
        computed = (
            mean_alarm_probability(rate, rate, mu=MU, num_each=NUM_EACH, confidence=confidence)
            if alarm is mean_alarm
            else alarm_probability(
                rate,
                rate,
                trade_off=lambda rate: gaussian_trade_off(rate, mu=MU),
                num_in=NUM_EACH,
                num_out=NUM_EACH,
                confidence=confidence,
            )
        )
        assert 0.05 < computed < 0.98
        assert rate_of(alarm(confidence), score_pairs(factor, seed=6)) == pytest.approx(computed, abs=0.02)


def coin_pairs(epsilon: float, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """Randomised response: meets (epsilon, 0) exactly."""
    generator = np.random.default_rng(seed)
    wrong = float(expit(-epsilon))
    for _ in range(REPETITIONS):
        told = generator.random((2, NUM_EACH))
        yield (told[0] > wrong).astype(float), (told[1] < wrong).astype(float)


def epsilon_alarm(epsilon: float, delta: float, confidence: float, threshold: float | None) -> Alarm:
    return lambda inside, outside: (
        epsilon_lower_bound(
            bound_rates(inside, outside, confidence=confidence, threshold=threshold), delta=delta
        ).epsilon
        > epsilon
    )


@pytest.mark.parametrize("level", [0.05, 1e-4])
def test_epsilon_alarms_stay_at_the_nominal_level_and_find_a_fault(level: float) -> None:
    alarm = epsilon_alarm(2.0, 0.0, 1 - level, 0.5)

    assert rate_of(alarm, coin_pairs(2.0, 7)) <= at_most(level)
    assert rate_of(alarm, coin_pairs(2.0 / FAULT, 8)) >= (0.95 if level == 0.05 else 0.5)


def test_epsilon_of_the_gate_is_out_of_reach_without_the_gaussian_shape() -> None:
    perfect = (np.ones(NUM_EACH), np.zeros(NUM_EACH))

    found = epsilon_lower_bound(bound_rates(*perfect, confidence=GATE, threshold=0.5), delta=DELTA)

    assert 3.5 < found.epsilon < 4.0 < epsilon_of_mu(MU, delta=DELTA)


@pytest.mark.parametrize("level", [0.05, 1e-4])
def test_family_alarms_stay_at_the_nominal_level_and_find_gross_faults(level: float) -> None:
    family, threshold = SubsampledGaussians(0.1, 50), 6.0
    bounds = rate_upper_bounds(NUM_EACH, 1 - level / 2)
    least = trade_off_curve(bounds, family, noise_multiplier=1.0)
    generator = np.random.default_rng(9)

    def rate(noise_factor: float) -> float:
        false_positives, false_negatives = (
            generator.binomial(NUM_EACH, chance, size=REPETITIONS)
            for chance in sum_score_rates(family, noise_multiplier=noise_factor, threshold=threshold)
        )
        return float((bounds[false_negatives] < least[false_positives]).mean())

    assert rate(1.0) <= at_most(level)
    assert rate(0.4) >= 0.95


def test_epsilon_alarm_probability_agrees_with_the_bound() -> None:
    computed = alarm_probability(
        0.08,
        0.08,
        trade_off=lambda rate: epsilon_trade_off(rate, epsilon=2.0, delta=0.0),
        num_in=NUM_EACH,
        num_out=NUM_EACH,
        confidence=0.95,
    )
    epsilon = float(-np.log(0.08 / 0.92))

    measured = rate_of(epsilon_alarm(2.0, 0.0, 0.95, 0.5), coin_pairs(epsilon, 10))

    assert measured == pytest.approx(computed, abs=0.02)


def test_deep_audit_comes_close_to_epsilon() -> None:
    generator = np.random.default_rng(11)
    found, pooled = [], []
    for _ in range(5):
        inside, outside = generator.normal(MU, size=10_000), generator.normal(size=10_000)
        found.append(mu_lower_bound(bound_rates(inside, outside, confidence=0.95)).epsilon(delta=DELTA))
        errors = bound_mean_error(inside, outside, confidence=0.95, threshold=MU / 2)
        pooled.append(mu_lower_bound(errors).epsilon(delta=DELTA))

    assert 9.0 <= np.median(found) <= np.median(pooled) <= epsilon_of_mu(MU, delta=DELTA)
