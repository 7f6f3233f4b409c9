"""The attack's maths: scores, likelihood ratios, rates, intervals and what epsilon allows.

Drives `simulations.attacks.membership.roc`.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulations.attacks.membership.lira import likelihood_ratios, logit_confidence
from simulations.attacks.membership.roc import auc_of, clopper_pearson, largest_tpr, rate_at, roc_of

MODELS, IMAGES = 48, 200


def leaking(strength: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are higher by so many standard deviations where the image was in."""
    rng = np.random.default_rng(seed)
    members = rng.random((MODELS, IMAGES)) < 0.5
    hardness, spread = 5 * rng.standard_normal(IMAGES), rng.uniform(0.5, 2, IMAGES)
    return hardness + spread * (rng.standard_normal((MODELS, IMAGES)) + strength * members), members


def test_logit_confidence_equals_log_odds_of_the_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 7))
    labels = np.arange(50) % 7
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chance = chance[np.arange(50), labels]

    assert logit_confidence(logits, labels) == pytest.approx(np.log(chance / (1 - chance)))


def test_logit_confidence_tells_sure_predictions_apart_where_probabilities_round_to_one() -> None:
    logits = np.array([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0]])

    found = logit_confidence(logits, np.array([0, 0]))

    assert found == pytest.approx([100 - np.log(2), 200 - np.log(2)])


def test_likelihood_ratios_equal_normal_densities_fitted_one_by_one() -> None:
    scores, members = leaking(1.0)
    target, image = 5, 17
    others = np.arange(MODELS) != target
    sides = [scores[others & (members[:, image] == side), image] for side in (True, False)]
    shared = []
    for side in (True, False):
        groups = [scores[others & (members[:, i] == side), i] for i in range(IMAGES)]
        shared.append(sum(g.var() * len(g) for g in groups) / sum(len(g) - 1 for g in groups))
    variances = [
        (side.var() * len(side) + 64 * common) / (len(side) - 1 + 64)
        for side, common in zip(sides, shared, strict=True)
    ]
    inside, outside = (
        stats.norm.logpdf(scores[target, image], side.mean(), np.sqrt(variance))
        for side, variance in zip(sides, variances, strict=True)
    )

    assert likelihood_ratios(scores, members)[target, image] == pytest.approx(inside - outside)


def test_likelihood_ratios_do_not_look_at_the_answer() -> None:
    scores, members = leaking(1.0)
    lied = members.copy()
    lied[3] = ~lied[3]

    before, after = likelihood_ratios(scores, members), likelihood_ratios(scores, lied)

    assert (before[3] == after[3]).all()
    assert (before[4] != after[4]).all()


def test_likelihood_ratios_say_nothing_of_an_image_that_no_other_model_had() -> None:
    scores, members = leaking(1.0)
    members[:, 0] = False
    members[2, 0] = True

    found = likelihood_ratios(scores, members)

    assert found[2, 0] == 0
    assert found[3, 0] != 0


def test_attack_on_known_leak_comes_near_to_what_the_best_attack_can_do() -> None:
    scores, members = leaking(2.0)

    auc, _ = auc_of(likelihood_ratios(scores, members).ravel(), members.ravel())

    best = stats.norm.cdf(2 / np.sqrt(2))
    assert best - 0.04 < auc < best + 0.01


def test_attack_finds_nothing_where_bits_were_shuffled() -> None:
    scores, members = leaking(3.0)
    shuffled = np.random.default_rng(1).permuted(members, axis=0)

    auc, stddev = auc_of(likelihood_ratios(scores, shuffled).ravel(), shuffled.ravel())

    assert abs(auc - 0.5) < 3 * stddev


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_roc_counts_what_a_loop_over_thresholds_counts(pairs: list[tuple[int, bool]]) -> None:
    statistic = np.array([float(value) for value, _ in pairs])
    members = np.array([member for _, member in pairs])

    roc = roc_of(statistic, members)

    wanted = [(0, 0)]
    for threshold in sorted(set(statistic), reverse=True):
        above = statistic >= threshold
        wanted.append((int((above & ~members).sum()), int((above & members).sum())))
    assert list(zip(roc.false_alarms.tolist(), roc.hits.tolist(), strict=True)) == wanted


def test_auc_counts_pairs_and_half_of_ties() -> None:
    statistic, members = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])

    assert auc_of(statistic, members)[0] == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_rate_keeps_within_the_false_alarms_that_are_allowed() -> None:
    statistic = np.concatenate([np.arange(1000.0), [998.5, 997.5, -1.0]])  # 1,000 others, three members
    members = np.arange(1003) >= 1000

    at_least, at_more = (rate_at(roc_of(statistic, members), fpr) for fpr in (0.001, 0.01))

    assert (at_least.false_alarms, at_least.tpr, at_least.enough) == (1, pytest.approx(1 / 3), False)
    assert (at_more.false_alarms, at_more.tpr, at_more.enough) == (10, pytest.approx(2 / 3), True)
    assert at_more.low < 2 / 3 < at_more.high


def test_clopper_pearson_leaves_out_no_more_than_it_may() -> None:
    trials, truth = 60, 0.05
    chances = stats.binom.pmf(np.arange(trials + 1), trials, truth)
    inside = [low <= truth <= high for low, high in (clopper_pearson(hits, trials, 0.9) for hits in range(trials + 1))]

    assert chances[np.array(inside)].sum() >= 0.9
    assert clopper_pearson(trials, trials, 0.9)[1] == 1.0


def test_largest_tpr_is_what_randomised_response_reaches() -> None:
    epsilon = 1.0
    told = np.exp(epsilon) / (1 + np.exp(epsilon))  # tells the truth so often

    assert largest_tpr(np.array(1 - told), epsilon, 0.0) == pytest.approx(told)
    assert largest_tpr(np.array([0.0, 1.0]), epsilon, 0.1) == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize(("shift", "within"), [(0.5, True), (3.0, False)])
def test_rate_notices_what_epsilon_does_not_allow(shift: float, within: bool) -> None:
    rng = np.random.default_rng(0)
    members = rng.random(40_000) < 0.5
    roc = roc_of(rng.standard_normal(40_000) + shift * members, members)

    rates = [rate_at(roc, fpr, epsilon=2.0, delta=1e-5) for fpr in (0.001, 0.01)]

    assert all(rate.within for rate in rates) == within
    assert all(rate_at(roc, fpr).within for fpr in (0.001, 0.01))
