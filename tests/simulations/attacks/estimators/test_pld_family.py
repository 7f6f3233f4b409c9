"""The family of subsampled Gaussians: its curves by closed form and by brute force, its inversion."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from common.errors import ConfigError
from common.privacy.accounting import DISCRETIZATION, pld_epsilon
from common.privacy.events import DpSgdEvent
from simulations.attacks.estimators.binomial import Floats
from simulations.attacks.estimators.error_rates import BoundedRates, bound_rates
from simulations.attacks.estimators.gaussian_dp import gaussian_trade_off
from simulations.attacks.estimators.pld_family import (
    SubsampledGaussians,
    log_likelihood_ratios,
    noise_upper_bound,
    trade_off_curve,
)
from tests.support.simulations.best_attacks import sum_score_rates

DELTA = 1e-5
GRID = np.linspace(0.005, 0.995, 100)
ONE_STEP = SubsampledGaussians(0.2, 1)
MANY_STEPS = SubsampledGaussians(0.1, 50)


def step_scores(
    generator: np.random.Generator, num_each: int, family: SubsampledGaussians, noise_multiplier: float
) -> tuple[Floats, Floats]:
    """(n, steps) canary scores of runs with and without it: its presence in the batch plus noise."""
    shape = (num_each, family.steps)
    drawn = generator.random(shape) < family.sample_rate
    noise = noise_multiplier * generator.normal(size=(2, *shape))
    return drawn + noise[0], noise[1]


def rates(false_positive: float, false_negative: float) -> BoundedRates:
    return BoundedRates(false_positive, false_negative, 0.95, 0.0, 100, 100, 0)


@pytest.mark.parametrize(("noise_multiplier", "steps"), [(1.0, 1), (1.0, 4), (4.0, 9)])
def test_curve_is_that_of_a_gaussian_when_every_unit_is_in_every_batch(noise_multiplier: float, steps: int) -> None:
    family = SubsampledGaussians(1.0, steps)

    found = trade_off_curve(GRID, family, noise_multiplier=noise_multiplier)
    exact = gaussian_trade_off(GRID, mu=steps**0.5 / noise_multiplier)

    assert (found <= exact + 1e-12).all()
    np.testing.assert_allclose(found, exact, atol=2e-4)


def test_curve_is_that_of_the_best_attack_on_one_step() -> None:
    threshold = np.linspace(-3.0, 5.0, 200)
    false_positive = ndtr(-threshold)
    false_negative = 0.8 * ndtr(threshold) + 0.2 * ndtr(threshold - 1.0)

    found = trade_off_curve(false_positive, ONE_STEP, noise_multiplier=1.0)

    np.testing.assert_allclose(found, false_negative, atol=2e-4)
    assert (found <= false_negative + 1e-12).all()


def test_curve_differs_between_directions() -> None:
    family = SubsampledGaussians(0.2, 4)
    ahead = trade_off_curve(GRID, family, noise_multiplier=0.5)

    # Reversed, the roles of both rates change: the curve's inverse is the other direction's curve.
    behind = np.interp(GRID, ahead[::-1], GRID[::-1])

    assert np.abs(ahead - behind)[GRID < 0.5].max() > 0.02


def test_curve_is_met_by_brute_force_over_many_steps() -> None:
    num_each = 20_000
    inside, outside = step_scores(np.random.default_rng(1), num_each, MANY_STEPS, 0.7)
    told_in, told_out = (
        log_likelihood_ratios(scores, sample_rate=0.1, noise_multiplier=0.7) for scores in (inside, outside)
    )
    for threshold in np.quantile(told_out, [0.5, 0.9, 0.99]):
        false_positive, false_negative = (told_out > threshold).mean(), (told_in <= threshold).mean()
        least = trade_off_curve([false_positive], MANY_STEPS, noise_multiplier=0.7)[0]
        step = 0.002
        slope = (least - trade_off_curve([false_positive + step], MANY_STEPS, noise_multiplier=0.7)[0]) / step
        errors = np.array([false_negative, false_positive])
        error = np.sqrt(errors * (1 - errors) / num_each) @ [1.0, slope]

        assert abs(false_negative - least) < 4 * error


def test_a_coarser_grid_refutes_less_and_costs_little() -> None:
    rate = np.linspace(0.001, 0.999, 50)
    fine, coarse, coarsest = (
        trade_off_curve(rate, SubsampledGaussians(0.1, 50, grid), noise_multiplier=0.7) for grid in (1e-4, 1e-3, 1e-2)
    )

    assert (coarse <= fine + 1e-12).all()
    assert (coarsest <= coarse + 1e-12).all()
    assert (fine - coarse).max() < 1e-4


def test_noise_is_found_from_exact_rates_of_the_best_attack() -> None:
    false_negative = trade_off_curve([0.1], MANY_STEPS, noise_multiplier=0.8)[0]

    found = noise_upper_bound(rates(0.1, false_negative), MANY_STEPS, declared_noise_multiplier=1.1, delta=DELTA)

    assert 0.8 <= found.noise_multiplier < 0.8 * 1.002
    assert found.noise_factor == found.noise_multiplier / 1.1
    official = pld_epsilon((DpSgdEvent(0.1, found.noise_multiplier, 50),), DELTA, DISCRETIZATION)
    assert found.epsilon == official


@pytest.mark.parametrize("false_positive", [0.05, 0.6])
def test_each_direction_finds_the_noise_of_one_step(false_positive: float) -> None:
    threshold = -0.6 * ndtri(false_positive)
    false_negative = float(0.8 * ndtr(threshold / 0.6) + 0.2 * ndtr((threshold - 1.0) / 0.6))

    found = noise_upper_bound(
        rates(false_positive, false_negative), ONE_STEP, declared_noise_multiplier=1.0, delta=DELTA
    )

    assert 0.6 <= found.noise_multiplier < 0.6 * 1.005


def test_nothing_is_refuted_by_a_coin() -> None:
    found = noise_upper_bound(rates(0.6, 0.6), MANY_STEPS, declared_noise_multiplier=4.0, delta=DELTA)

    assert (found.noise_multiplier, found.epsilon) == (np.inf, 0.0)


def test_search_stops_near_a_quarter_of_the_declared_noise() -> None:
    family = SubsampledGaussians(1.0, 1)

    found = noise_upper_bound(rates(1e-9, 1e-9), family, declared_noise_multiplier=8.0, delta=DELTA)

    assert 0.25 <= found.noise_factor < 0.25 * 1.25


def test_rates_of_summed_scores_are_met_by_brute_force() -> None:
    inside, outside = step_scores(np.random.default_rng(2), 20_000, MANY_STEPS, 1.0)

    exact = sum_score_rates(MANY_STEPS, noise_multiplier=1.0, threshold=6.0)

    assert (outside.sum(axis=1) > 6.0).mean() == pytest.approx(exact[0], abs=4 * (exact[0] / 20_000) ** 0.5)
    assert (inside.sum(axis=1) <= 6.0).mean() == pytest.approx(exact[1], abs=4 * (exact[1] / 20_000) ** 0.5)


def test_likelihood_ratio_of_full_batches_is_the_sum_in_other_units() -> None:
    scores = np.array([[1.0, 0.0], [2.0, -1.0], [0.5, 0.5]])

    found = log_likelihood_ratios(scores, sample_rate=1.0, noise_multiplier=2.0)

    np.testing.assert_allclose(found, (scores - 0.5).sum(axis=1) / 4)


def test_likelihood_ratio_equals_the_hand_solution() -> None:
    found = log_likelihood_ratios([[1.0]], sample_rate=0.25, noise_multiplier=1.0)

    np.testing.assert_allclose(found, np.log(0.75 + 0.25 * np.exp(0.5)))


def test_impossible_families_and_noise_are_refused() -> None:
    for sample_rate, steps in ((0.0, 1), (1.1, 1), (0.5, 0)):
        with pytest.raises(ConfigError, match="sample rate"):
            SubsampledGaussians(sample_rate, steps)
    for noise in (0.0, -1.0, np.inf):
        with pytest.raises(ConfigError, match="noise"):
            noise_upper_bound(rates(0.1, 0.1), ONE_STEP, declared_noise_multiplier=noise, delta=DELTA)


@pytest.mark.parametrize(
    ("noise_multiplier", "fixed", "least"), [(0.7, True, 0.85), (1.0, True, 0.85), (1.0, False, 0.65)]
)
def test_deep_audit_of_single_steps_finds_most_of_epsilon(noise_multiplier: float, fixed: bool, least: float) -> None:
    simulated, audited = (
        [
            log_likelihood_ratios(scores, sample_rate=0.1, noise_multiplier=noise_multiplier)
            for scores in step_scores(np.random.default_rng(seed), 10_000, MANY_STEPS, noise_multiplier)
        ]
        for seed in (99, 5)
    )
    threshold = float(np.quantile(simulated[1], 0.8)) if fixed else None
    truth = pld_epsilon((DpSgdEvent(0.1, noise_multiplier, 50),), DELTA, DISCRETIZATION)

    bounded = bound_rates(*audited, confidence=0.95, threshold=threshold)
    found = noise_upper_bound(bounded, MANY_STEPS, declared_noise_multiplier=noise_multiplier, delta=DELTA)

    assert least * truth <= found.epsilon <= truth


def test_deep_audit_of_the_sum_finds_two_thirds_of_epsilon_when_noise_is_ample() -> None:
    inside, outside = step_scores(np.random.default_rng(7), 10_000, MANY_STEPS, 1.5)
    truth = pld_epsilon((DpSgdEvent(0.1, 1.5, 50),), DELTA, DISCRETIZATION)

    bounded = bound_rates(inside.sum(axis=1), outside.sum(axis=1), confidence=0.95, threshold=5.0)
    found = noise_upper_bound(bounded, MANY_STEPS, declared_noise_multiplier=1.5, delta=DELTA)

    assert 0.65 * truth <= found.epsilon <= truth
