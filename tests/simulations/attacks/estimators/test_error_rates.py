"""Error rates of an attack: counted by hand; which scores choose and which count."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import Floats, rate_upper_bound, rate_upper_bounds
from simulations.attacks.estimators.error_rates import bound_mean_error, bound_rates, gaussian_distance

INSIDE = [3.0, 0.5, 2.0, 1.0, 4.0]
OUTSIDE = [0.0, 1.5, -1.0, 1.0]


def gaussians(num_each: int, mu: float, seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    return generator.normal(mu, size=num_each), generator.normal(size=num_each)


def test_fixed_threshold_counts_every_score() -> None:
    rates = bound_rates(INSIDE, OUTSIDE, confidence=0.9, threshold=1.0)

    # One of four without the canary lies above 1, one on it; two of five with it do not.
    assert rates.false_positive_rate == rate_upper_bound(1, 4, confidence=0.95)
    assert rates.false_negative_rate == rate_upper_bound(2, 5, confidence=0.95)
    assert (rates.threshold, rates.num_in, rates.num_out, rates.num_choosing) == (1.0, 5, 4, 0)


def test_mean_error_counts_as_many_scores_of_either_kind() -> None:
    found = bound_mean_error(INSIDE, OUTSIDE, confidence=0.9, threshold=1.0)

    # The fifth score with the canary is left out: three errors of eight.
    assert found.mean_error == rate_upper_bound(3, 8, confidence=0.9)
    assert found.num_each == 4


def test_chosen_threshold_depends_on_even_scores_alone() -> None:
    inside, outside = gaussians(200, 2.0)
    first = bound_rates(inside, outside, confidence=0.95)

    inside[1::2], outside[1::2] = -50.0, 50.0
    second = bound_rates(inside, outside, confidence=0.95)

    assert first.threshold == second.threshold
    assert (first.num_in, first.num_out, first.num_choosing) == (100, 100, 200)
    assert first.false_positive_rate < 0.5
    assert (second.false_positive_rate, second.false_negative_rate) == (1.0, 1.0)


def test_rates_depend_on_odd_scores_and_the_threshold_alone() -> None:
    inside, outside = gaussians(200, 2.0)

    chosen = bound_rates(inside, outside, confidence=0.95)
    fixed = bound_rates(inside[1::2], outside[1::2], confidence=0.95, threshold=chosen.threshold)

    assert chosen.false_positive_rate == fixed.false_positive_rate
    assert chosen.false_negative_rate == fixed.false_negative_rate


def test_chosen_threshold_is_the_best_of_all() -> None:
    inside, outside = gaussians(60, 1.5)
    chosen = bound_rates(np.repeat(inside, 2), np.repeat(outside, 2), confidence=0.9)  # both halves are equal

    def distance(threshold: float) -> float:
        rates = bound_rates(inside, outside, confidence=0.9, threshold=threshold)
        return float(gaussian_distance(np.array(rates.false_positive_rate), np.array(rates.false_negative_rate)))

    assert distance(chosen.threshold) == max(distance(x) for x in [*inside, *outside])


@pytest.mark.parametrize("confidence", [0.75, 0.95, 0.9999])
def test_mean_error_is_too_low_as_seldom_as_stated_when_both_rates_differ(confidence: float) -> None:
    num_each = 30
    bounds = rate_upper_bounds(2 * num_each, confidence)
    counts = np.arange(num_each + 1)
    for false_positive in np.linspace(0.0, 1.0, 21):
        for false_negative in np.linspace(0.0, 1.0, 21):
            together = np.convolve(
                binom.pmf(counts, num_each, false_positive), binom.pmf(counts, num_each, false_negative)
            )
            missed = together[bounds < (false_positive + false_negative) / 2].sum()
            assert missed <= 1 - confidence + 1e-12


def test_gaussian_distance_finds_the_distance_of_two_gaussians() -> None:
    threshold = np.array([-1.0, 0.3, 2.0])

    found = gaussian_distance(ndtr(-threshold), ndtr(threshold - 1.7))

    np.testing.assert_allclose(found, 1.7, rtol=1e-12)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")], [[1.0, 2.0]]])
def test_scores_that_are_missing_or_not_finite_are_refused(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"in:|in are not"):
        bound_rates(bad, OUTSIDE, confidence=0.9, threshold=0.0)
    with pytest.raises(ConfigError, match=r"out:|out are not"):
        bound_mean_error(INSIDE, bad, confidence=0.9, threshold=0.0)


def test_one_score_is_too_few_to_choose_and_to_count() -> None:
    with pytest.raises(ConfigError, match="too few"):
        bound_rates([1.0], OUTSIDE, confidence=0.9)


@pytest.mark.parametrize("confidence", [-0.5, 0.0, 1.0, float("nan")])
def test_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        bound_rates(INSIDE, OUTSIDE, confidence=confidence, threshold=0.0)
    with pytest.raises(ConfigError, match="confidence"):
        bound_mean_error(INSIDE, OUTSIDE, confidence=confidence, threshold=0.0)
