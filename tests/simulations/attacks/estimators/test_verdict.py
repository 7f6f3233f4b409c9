"""Detectable violations against brute force; what a verdict says, and what it never says."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from common.errors import ConfigError
from simulations.attacks.estimators.binomial import rate_upper_bounds
from simulations.attacks.estimators.error_rates import BoundedMeanError, BoundedRates
from simulations.attacks.estimators.gaussian_dp import gaussian_trade_off, mu_lower_bound
from simulations.attacks.estimators.power import Detectable, alarm_probability, detectable, mean_alarm_probability
from simulations.attacks.estimators.verdict import Judgement, Verdict, judge
from tests.support.simulations.best_attacks import detectable_gaussian

RATES = (0.12, 0.2)


def judged(lower_bound: float, noise_factor: float | None) -> Judgement:
    seen = None if noise_factor is None else Detectable(noise_factor, 0.95, 0.01)
    return judge(
        lower_bound=lower_bound,
        upper_bound=9.5,
        confidence=0.9999,
        adversary="all updates, one canary",
        seen=seen,
    )


def test_alarm_probability_adds_up_every_outcome_of_the_estimator() -> None:
    num_in, num_out, each = 12, 17, 0.95
    expected = 0.0
    for false_positives, false_positive in enumerate(rate_upper_bounds(num_out, each)):
        for false_negatives, false_negative in enumerate(rate_upper_bounds(num_in, each)):
            found = mu_lower_bound(BoundedRates(false_positive, false_negative, 0.9, 0.0, num_in, num_out, 0))
            chance = binom.pmf(false_positives, num_out, RATES[0]) * binom.pmf(false_negatives, num_in, RATES[1])
            expected += chance * (found.mu > 0.8)

    found = alarm_probability(
        *RATES,
        trade_off=lambda rate: gaussian_trade_off(rate, mu=0.8),
        num_in=num_in,
        num_out=num_out,
        confidence=0.9,
    )

    assert 0.1 < expected < 0.9
    assert found == pytest.approx(expected, abs=1e-12)


def test_mean_alarm_probability_adds_up_every_outcome_of_the_estimator() -> None:
    together = np.convolve(binom.pmf(np.arange(16), 15, RATES[0]), binom.pmf(np.arange(16), 15, RATES[1]))
    bounds = rate_upper_bounds(30, 0.9)
    alarms = [mu_lower_bound(BoundedMeanError(bound, 0.9, 0.0, 15)).mu > 1.2 for bound in bounds]

    found = mean_alarm_probability(*RATES, mu=1.2, num_each=15, confidence=0.9)

    assert 0.1 < found < 0.9
    assert found == pytest.approx(together[alarms].sum(), abs=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
def test_smallest_violation_is_found_just_often_enough(pooled: bool) -> None:
    found = detectable_gaussian(2.0, num_in=500, num_out=500, confidence=0.9999, pooled=pooled)

    def power(factor: float) -> float:
        rate = float(ndtr(-1 / factor))
        if pooled:
            return mean_alarm_probability(rate, rate, mu=2.0, num_each=500, confidence=0.9999)
        return alarm_probability(
            rate,
            rate,
            trade_off=lambda rate: gaussian_trade_off(rate, mu=2.0),
            num_in=500,
            num_out=500,
            confidence=0.9999,
        )

    assert power(found.noise_factor) >= 0.95 > power(found.noise_factor + 2e-3)
    assert found.false_alarm == pytest.approx(power(1.0))
    assert found.false_alarm <= 1e-4


def test_more_scores_see_smaller_violations_and_few_see_none() -> None:
    seen = [detectable_gaussian(2.0, num_in=n, num_out=n, confidence=0.95).noise_factor for n in (4, 50, 500, 10_000)]

    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert seen[-1] > 0.95


def test_power_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="power"):
        detectable(lambda factor: (0.1, 0.1), lambda a, b: 1.0, power=1.0)


@pytest.mark.parametrize(
    ("lower_bound", "noise_factor", "verdict"),
    [
        (9.6, 0.8, Verdict.VIOLATED),
        (9.6, None, Verdict.VIOLATED),  # power is beside the point once something was found
        (9.5, 0.8, Verdict.CONSISTENT),
        (9.4, 0.5, Verdict.CONSISTENT),
        (9.4, 0.49, Verdict.TOO_WEAK),
        (9.4, 0.0, Verdict.TOO_WEAK),
        (9.4, None, Verdict.TOO_WEAK),
    ],
)
def test_verdict_follows_from_bounds_and_power(
    lower_bound: float, noise_factor: float | None, verdict: Verdict
) -> None:
    found = judged(lower_bound, noise_factor)

    assert found.verdict is verdict
    assert found.sentence.startswith(verdict.capitalize())


def test_sentence_states_both_bounds_the_adversary_and_the_power() -> None:
    assert judged(7.1239, 0.7824).sentence == (
        "Consistent: epsilon lower bound >= 7.123 (99.99 %) for the stated adversary (all updates, one canary); "
        "ledger upper bound <= 9.500. The smallest violation this audit could have seen: noise of 0.782 times "
        "what was declared (found in 95 % of such audits)."
    )
    assert "not known" in judged(1.0, None).sentence
    assert "Not even a sixteenth" in judged(1.0, 0.0).sentence


@pytest.mark.parametrize("noise_factor", [None, 0.0, 0.4, 0.8])
@pytest.mark.parametrize("lower_bound", [0.0, 5.0, 50.0])
def test_no_sentence_promises_anything(lower_bound: float, noise_factor: float | None) -> None:
    sentence = judged(lower_bound, noise_factor).sentence.lower()

    assert not any(word in sentence for word in ("guarantee", "proof", "proves", "private", "safe", "verified"))


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_figures_that_are_missing_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="no verdict"):
        judged(bad, 0.8)
