"""Lower bounds on (epsilon, delta) and on mu: by hand, inverse pairs, and against dp_accounting.

Drives `simulations.attacks.estimators.epsilon_delta`, `simulations.attacks.estimators.gaussian_dp`.
"""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.special import ndtr

from common.errors import ConfigError
from simulations.attacks.estimators.epsilon_delta import epsilon_lower_bound, epsilon_trade_off
from simulations.attacks.estimators.error_rates import BoundedMeanError, BoundedRates
from simulations.attacks.estimators.gaussian_dp import epsilon_of_mu, gaussian_trade_off, mu_lower_bound, mu_of_epsilon

DELTA = 1e-5


def rates(false_positive: float, false_negative: float) -> BoundedRates:
    return BoundedRates(false_positive, false_negative, 0.95, 0.0, 100, 100, 0)


def test_epsilon_equals_the_hand_solution_in_either_direction() -> None:
    assert epsilon_lower_bound(rates(0.1, 0.3), delta=0.0).epsilon == pytest.approx(math.log(7))
    assert epsilon_lower_bound(rates(0.3, 0.1), delta=0.0).epsilon == pytest.approx(math.log(7))
    assert epsilon_lower_bound(rates(0.1, 0.3), delta=0.2).epsilon == pytest.approx(math.log(5))


def test_epsilon_is_zero_when_the_attack_is_no_better_than_a_coin() -> None:
    assert epsilon_lower_bound(rates(0.6, 0.6), delta=0.0).epsilon == 0.0
    assert epsilon_lower_bound(rates(1.0, 1.0), delta=0.0).epsilon == 0.0


@pytest.mark.parametrize("point", [(0.01, 0.5), (0.5, 0.01), (0.2, 0.2)])
def test_epsilon_is_where_the_trade_off_passes_through_the_rates(point: tuple[float, float]) -> None:
    found = epsilon_lower_bound(rates(*point), delta=DELTA).epsilon

    assert epsilon_trade_off(point[0], epsilon=found, delta=DELTA) == pytest.approx(point[1], abs=1e-12)


def test_trade_off_is_full_without_privacy_loss_and_nothing_without_privacy() -> None:
    rate = np.array([0.0, 0.25, 1.0])

    np.testing.assert_allclose(epsilon_trade_off(rate, epsilon=0.0, delta=0.0), 1 - rate)
    np.testing.assert_allclose(epsilon_trade_off(rate, epsilon=800.0, delta=0.0), [1.0, 0.0, 0.0], atol=1e-300)
    np.testing.assert_allclose(gaussian_trade_off(rate, mu=0.0), 1 - rate)


def test_epsilon_of_a_mechanism_that_meets_it_exactly_is_found() -> None:
    wrong = 1 / (1 + math.exp(2.0))  # randomised response

    assert epsilon_lower_bound(rates(wrong, wrong), delta=0.0).epsilon == pytest.approx(2.0)


@pytest.mark.parametrize("delta", [-0.1, 1.0])
def test_epsilon_refuses_a_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon_lower_bound(rates(0.1, 0.1), delta=delta)


@pytest.mark.parametrize("threshold", [-1.0, 0.7, 3.0])
def test_mu_of_a_gaussian_mechanism_is_found_at_any_threshold(threshold: float) -> None:
    found = mu_lower_bound(rates(float(ndtr(-threshold)), float(ndtr(threshold - 2.0))))

    assert found.mu == pytest.approx(2.0)
    assert found.epsilon(delta=DELTA) == pytest.approx(epsilon_of_mu(2.0, delta=DELTA))


def test_mu_follows_from_the_mean_error_at_the_midpoint() -> None:
    assert mu_lower_bound(BoundedMeanError(float(ndtr(-1.0)), 0.95, 1.0, 500)).mu == pytest.approx(2.0)


def test_mean_error_is_never_below_that_of_a_coin_under_the_trade_off() -> None:
    grid = np.linspace(1e-6, 1 - 1e-6, 100_001)

    least = ((grid + gaussian_trade_off(grid, mu=1.3)) / 2).min()

    assert least == pytest.approx(ndtr(-0.65), abs=1e-8)


def test_mu_is_zero_when_the_attack_is_no_better_than_a_coin() -> None:
    assert mu_lower_bound(rates(0.6, 0.6)).mu == 0.0
    assert mu_lower_bound(rates(1.0, 1.0)).epsilon(delta=DELTA) == 0.0
    assert mu_lower_bound(BoundedMeanError(1.0, 0.95, 1.0, 500)).mu == 0.0


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 2.0, 7.5, 40.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_mu_and_epsilon_are_inverse(mu: float, delta: float) -> None:
    epsilon = epsilon_of_mu(mu, delta=delta)
    if epsilon == 0:  # delta alone pays for it
        assert mu <= mu_of_epsilon(0.0, delta=delta)
    else:
        assert mu_of_epsilon(epsilon, delta=delta) == pytest.approx(mu, rel=1e-6)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0, 4.0])
def test_epsilon_of_mu_agrees_with_the_accountant(mu: float) -> None:
    official = pld.from_gaussian_mechanism(1 / mu).get_epsilon_for_delta(DELTA)

    assert epsilon_of_mu(mu, delta=DELTA) == pytest.approx(official, abs=1e-4)


def test_conversions_refuse_what_is_out_of_range() -> None:
    for mu, delta in ((-1.0, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ConfigError):
            epsilon_of_mu(mu, delta=delta)
    for epsilon, delta in ((-1.0, 0.1), (math.inf, 0.1), (1.0, 0.0)):
        with pytest.raises(ConfigError):
            mu_of_epsilon(epsilon, delta=delta)
