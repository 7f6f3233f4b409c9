"""Shares of noise: rounding before the noise, its scale alone and in sums, the ring, and both figures of a client."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from scipy import stats

from common.errors import ConfigError, PolicyError, PrivacyError
from common.privacy.accounting import NO_PROTECTION, spent_alone, spent_by
from common.privacy.events import CountsEvent, DpSgdEvent, as_json, from_json
from common.privacy.gaussian_table import TABLE_STDDEV, TOTAL_VARIATION, factors
from common.privacy.noise import SecureStream
from common.privacy.noise_error import CURRENT_SAMPLER, MAX_DRAWS, total_variation
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan
from common.privacy.policy import ANYTHING, Policy
from common.secagg.noise_shares import (
    ShareScale,
    counts_scale,
    gradient_scale,
    share_words,
    values_of_sum,
)
from tests.support.ledger.builders import PLAN
from tests.support.secagg.ring_sums import ring_sum

DELTA, SIZE = 1e-5, 12_810
T, N = 4, 5
SHARED = replace(PLAN, sample_rate=1.0, max_grad_norm=0.1, noise_multiplier=10.0, noise_shares=T, counts=None)


class Silent:
    """Bytes of zeros, the same noise for all."""

    def random_bytes(self, size: int) -> bytes:
        return bytes(size)


def scale_of(plan: PrivacyPlan = SHARED, **changes: int) -> ShareScale:
    return gradient_scale(plan, SIZE, **{"total_units": 50, "num_clients": N} | changes)


def noise_of(words: list[np.ndarray], scale: ShareScale) -> np.ndarray:
    return values_of_sum(ring_sum(words, scale.bits), scale)


def words_of_nothing(number: int, scale: ShareScale) -> list[np.ndarray]:
    return [share_words(np.zeros(SIZE), scale, num_units=10, stream=SecureStream()) for _ in range(number)]


def test_one_share_has_the_noise_of_a_share_and_the_sum_of_all_accounted_ones_the_declared_noise() -> None:
    """T2. A share that were scaled for n, or that a client left out, would be 0.89 or 0.87 of it: 15 sigma and more."""
    scale, declared = scale_of(), SHARED.noise_stddev
    shares = words_of_nothing(T, scale)

    for number, found in [(1, noise_of(shares[:1], scale)), (T, noise_of(shares, scale))]:
        energy = float((found**2).sum()) / (declared**2 * number / T)
        assert 2 * min(stats.chi2.sf(energy, SIZE), stats.chi2.cdf(energy, SIZE)) > 1e-7
        assert stats.kstest(found / found.std(), "norm").pvalue > 1e-6


def test_noise_differs_between_clients_and_rounds() -> None:
    """T3."""
    scale = scale_of()
    first, second, again = (noise_of([words], scale) for words in words_of_nothing(3, scale))

    for one, other in [(first, second), (first, again)]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / math.sqrt(SIZE)


@pytest.mark.parametrize("norm", [0.1, 0.0], ids=["a whole unit", "nothing"])
def test_one_unit_moves_the_words_by_no_more_than_the_sensitivity(norm: float) -> None:
    """T1, on the whole numbers before the masks, with the noise held still."""
    rng, scale = np.random.default_rng(3), scale_of()
    values, unit = rng.normal(size=SIZE), rng.normal(size=SIZE)
    unit *= norm / np.linalg.norm(unit)

    words = [share_words(each, scale, num_units=10, stream=Silent()) for each in (values, values + unit)]

    moved = values_of_sum(words[1] - words[0] & np.uint64((1 << scale.bits) - 1), scale)
    assert np.linalg.norm(moved) <= 0.1 * (1 + SENSITIVITY_SLACK)
    assert (norm == 0) == (not moved.any())


def test_values_are_rounded_before_the_noise_and_never_after() -> None:
    """Noise on the grid, rounded once more to a coarser one, would take few of its residues."""
    scale = scale_of()

    words = share_words(np.full(SIZE, 0.4 * scale.step), scale, num_units=10, stream=SecureStream())

    assert np.array_equal(
        share_words(np.full(SIZE, 0.4 * scale.step), scale, num_units=10, stream=Silent()),
        share_words(np.zeros(SIZE), scale, num_units=10, stream=Silent()),
    )
    assert stats.chisquare(np.bincount((words % np.uint64(64)).astype(int), minlength=64)).pvalue > 1e-6


@pytest.mark.parametrize("sizes", [(20, 20, 10), (1, 1, 1)])
def test_the_ring_holds_the_largest_sum_that_there_can_be(sizes: tuple[int, ...]) -> None:
    scale = scale_of(total_units=sum(sizes), num_clients=len(sizes))
    # Its digits on the grid do not vanish modulo the ring, as those of a round number would.
    most = np.full(3, 1234.567)

    words = [share_words(most, scale, num_units=size, stream=SecureStream()) for size in sizes]
    found = noise_of(words, scale)

    # Cut to each client's bound, which no clipped sum exceeds, and not wrapped.
    assert np.all(np.abs(found - sum(sizes) * 0.1) < 9 * SHARED.noise_stddev)
    assert scale.bits in {32, 40, 48}


def test_a_grid_on_which_rounding_breaks_the_clip_bound_is_refused() -> None:
    """A coarser grid would fit into 32 bits."""
    coarse = replace(scale_of(), step=2.0**-12, bits=32)

    with pytest.raises(PrivacyError, match="coarse"):
        share_words(np.zeros(SIZE), coarse, num_units=10, stream=SecureStream())


def test_a_sum_that_fits_in_no_word_and_a_plan_without_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        scale_of(total_units=10**14)
    with pytest.raises(PrivacyError, match="without noise in shares"):
        scale_of(replace(SHARED, noise_shares=0))


def test_counts_in_shares_are_whole_before_the_noise() -> None:
    scale = counts_scale(25.0, T, total_units=60_000, num_clients=N)
    counts = [np.array([1_000.0, 17.0]) for _ in range(N)]

    words = [share_words(each, scale, num_units=12_000, stream=Silent()) for each in counts]
    silent = [share_words(np.zeros(2), scale, num_units=12_000, stream=Silent()) for _ in counts]

    assert noise_of(words, scale).tolist() == np.add(noise_of(silent, scale), [5_000, 85]).tolist()
    assert scale.share_stddev == pytest.approx(25 / 2)
    assert scale.bits <= 56


@pytest.mark.parametrize("shares", [1, 4, 1_000])
@pytest.mark.parametrize("stddev", [Fraction(2**24), Fraction(10**9 + 7, 3), Fraction(2**46)], ids=str)
def test_a_sum_of_shares_is_as_near_to_a_normal_as_it_is_charged(shares: int, stddev: Fraction) -> None:
    """Recompute the bound of docs/privacy.md: all draws of all shares, smallest factors first."""
    norms, reached = [], 0
    for factor in factors(stddev):
        for _ in range(shares):
            reached += factor**2
            norms.append(reached)
    widths = [TABLE_STDDEV * math.sqrt(before / after) for before, after in pairwise(norms)]

    # Every width is at least 4, the one that the bound of one value is stated for, so each draw adds as little.
    assert min(widths, default=4.0) >= 4
    assert len(norms) <= 6 * shares
    # The variance is that of the accounted noise and of one rounding, at least.
    assert TABLE_STDDEV**2 * reached >= shares * stddev**2 + 16
    assert total_variation([shared_event(shares)]) == MAX_DRAWS * shares * TOTAL_VARIATION < 1e-12


def shared_event(shares: int = T, **changes: float) -> DpSgdEvent:
    event = DpSgdEvent(1.0, 10.0, 1, sampler=CURRENT_SAMPLER, draws_per_step=MAX_DRAWS, noise_shares=shares)
    return replace(event, **changes)  # type: ignore[arg-type]


def test_both_figures_are_those_of_the_library_for_the_noise_of_the_sum_and_of_one_share() -> None:
    """T5: a history of own noise, noise in shares and counts in shares, each composed by hand."""
    history = [DpSgdEvent(1.0, 30.0, 2), shared_event(steps=20), CountsEvent(8.0, 3, noise_shares=9)]

    honest, alone = spent_by(history, delta=DELTA), spent_alone(history, delta=DELTA)

    for found, noises in [(honest, (30.0, 10.0, 8.0)), (alone, (30.0, 5.0, 8 / 3))]:
        accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
        for noise, count in zip(noises, (2, 20, 3), strict=True):
            accountant.compose(dp_event.GaussianDpEvent(noise), count)
        assert found.pld == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
        rho = sum(count / (2 * noise**2) for noise, count in zip(noises, (2, 20, 3), strict=True))
        assert found.pld < found.rdp < rho + 2 * math.sqrt(rho * math.log(1 / DELTA))
    assert alone.pld > 1.9 * honest.pld


def test_a_share_that_is_no_protection_is_said_to_be_none() -> None:
    history = [shared_event(shares=900, steps=300)]

    assert spent_by(history, delta=DELTA).pld < 20
    assert spent_alone(history, delta=DELTA) == NO_PROTECTION


@pytest.mark.parametrize("shares", [-1, 1.5, "4"])
def test_shares_that_are_no_number_of_clients_are_refused(shares: object) -> None:
    event = from_json(as_json(shared_event()) | {"noise-shares": shares})

    with pytest.raises(PrivacyError, match="clients carry its noise"):
        total_variation([event])


def test_an_event_in_shares_without_a_bound_on_its_error_is_refused() -> None:
    with pytest.raises(PrivacyError, match="fewer draws"):
        total_variation([shared_event(sampler=0, draws_per_step=0)])


def test_events_and_plans_without_shares_are_stored_as_before() -> None:
    assert as_json(DpSgdEvent(1.0, 4.0, 2)).keys() == {"kind", "sample-rate", "noise-multiplier", "steps", "group-size"}
    assert "noise_shares" not in PLAN.as_json()
    assert "noise_shares" not in PLAN.as_json()["counts"]
    assert from_json(as_json(shared_event())) == shared_event()
    assert PrivacyPlan.from_json(SHARED.as_json()) == replace(SHARED, sampler=0)
    assert SHARED.digest != replace(SHARED, noise_shares=T + 1).digest


def test_a_policy_believes_in_honest_clients_only_if_its_holder_does() -> None:
    plan = replace(SHARED, num_rounds=10, steps_per_round=1, sampler=CURRENT_SAMPLER)
    spent, alone = plan.spent(), plan.spent_alone()
    cap = (spent.pld + alone.pld) / 2
    assert spent.pld < cap < alone.pld
    cautious = Policy(max_epsilon=cap, delta=DELTA)

    cautious.model_copy(update={"accept_honest_shares": True}).check_spent(spent, alone)
    ANYTHING.check_spent(spent, NO_PROTECTION)

    with pytest.raises(PolicyError, match="own share of the noise"):
        cautious.check_spent(spent, alone)
    with pytest.raises(PolicyError, match="more than can be computed"):
        cautious.check_spent(spent, NO_PROTECTION)
    for accepts in (False, True):
        both = Policy(max_epsilon=99.0, delta=DELTA, accept_honest_shares=accepts, max_epsilon_alone=cap)
        with pytest.raises(PolicyError, match="max-epsilon-alone"):
            both.check_spent(spent, alone)


@pytest.mark.parametrize(("accepts", "least", "allowed"), [(False, 5.0, True), (False, 5.1, False), (True, 9.9, True)])
def test_the_least_noise_of_a_policy_is_that_of_the_figure_it_caps(accepts: bool, least: float, allowed: bool) -> None:
    """The noise multiplier is 10 for all shares, and 5 for the share of one of four clients."""
    policy = Policy(max_epsilon=9.0, delta=DELTA, min_noise_multiplier=least, accept_honest_shares=accepts)

    if allowed:
        policy.check_plan(SHARED)
    else:
        with pytest.raises(PolicyError, match="noise multiplier 5 is less than"):
            policy.check_plan(SHARED)
