"""Bounds on rates: by hand, and by adding up every outcome."""

import numpy as np
import pytest
from scipy.stats import binom

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import rate_lower_bound, rate_upper_bound, rate_upper_bounds


def test_upper_bound_equals_the_hand_solution_when_nothing_or_one_thing_happened() -> None:
    assert rate_upper_bound(0, 20, confidence=0.95) == pytest.approx(1 - 0.05 ** (1 / 20), rel=1e-12)
    bound = rate_upper_bound(1, 2, confidence=0.95)
    assert 1 - bound**2 == pytest.approx(0.05, rel=1e-9)  # P(at most one of two)


def test_upper_bound_is_one_when_everything_happened() -> None:
    assert rate_upper_bound(7, 7, confidence=0.95) == 1.0


def test_lower_bound_mirrors_the_upper_bound() -> None:
    for count in range(11):
        mirrored = 1 - rate_upper_bound(10 - count, 10, confidence=0.9)
        assert rate_lower_bound(count, 10, confidence=0.9) == pytest.approx(mirrored, abs=1e-15)
    assert rate_lower_bound(10, 10, confidence=0.95) == pytest.approx(0.05**0.1)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.9999])
@pytest.mark.parametrize("trials", [1, 5, 40])
def test_upper_bound_is_too_low_as_seldom_as_stated_whatever_the_rate_is(trials: int, confidence: float) -> None:
    bounds = rate_upper_bounds(trials, confidence)
    missed = []
    just_above = np.minimum(bounds[:-1] * (1 + 1e-9), 1.0)  # where a bound has just become too low
    for rate in [*np.linspace(0.001, 0.999, 999), *just_above]:
        chances = binom.pmf(np.arange(trials + 1), trials, rate)
        missed.append(chances[bounds < rate].sum())

    assert max(missed) <= 1 - confidence + 1e-12
    assert max(missed) > 0.99 * (1 - confidence)  # no wider than it must be


def test_bounds_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        rate_upper_bounds(5, 0.95)[0] = 0.0


@pytest.mark.parametrize(("count", "trials", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)])
def test_impossible_counts_and_confidences_are_refused(count: int, trials: int, confidence: float) -> None:
    with pytest.raises(ConfigError):
        rate_upper_bound(count, trials, confidence=confidence)
