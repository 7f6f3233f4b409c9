"""The noise that is found never costs more than asked, and little less."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from common.errors import ConfigError
from common.privacy import calibration
from common.privacy.accounting import spent_by
from common.privacy.calibration import LEAST_COUNTS_NOISE, calibrate, counts_noise, least_noise, split_counts_noise
from common.privacy.events import CountsEvent, DpSgdEvent, Event

DELTA = 1e-5


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Balle and Wang 2018, arXiv:1805.06530."""
    first = norm.cdf(1 / (2 * noise) - epsilon * noise)
    return float(first - math.exp(epsilon) * norm.cdf(-1 / (2 * noise) - epsilon * noise))


@pytest.mark.parametrize(
    ("rate", "steps", "target"), [(1.0, 1, 1.0), (1.0, 30, 8.0), (0.1, 200, 2.0), (0.02, 50, 0.3), (0.5, 3, 20.0)]
)
def test_calibrate_never_overshoots_and_wastes_little(rate: float, steps: int, target: float) -> None:
    noise = calibrate(rate, steps, target, DELTA)

    assert 0.998 * target <= spent_by([DpSgdEvent(rate, noise, steps)], delta=DELTA).pld <= target


@pytest.mark.parametrize(("steps", "target"), [(1, 0.5), (1, 1.0), (16, 3.0), (100, 8.0)])
def test_calibrate_of_full_batches_is_the_closed_form(steps: int, target: float) -> None:
    noise = calibrate(1.0, steps, target, DELTA) / math.sqrt(steps)

    assert gaussian_delta(target, noise) <= DELTA
    assert gaussian_delta(target, noise * 0.997) > DELTA


def test_charge_of_the_sampler_does_not_move_the_noise_of_an_earlier_version() -> None:
    """Another last digit would be another plan, and an interrupted run of 0.1.0 could not go on."""
    rate, steps, target, delta = 0.038808056627296375, 4680, 11.32, 3.106e-7

    # As 0.1.0 computed it, which knew no charge. With the charge alone it would move by 2e-8.
    guess = max(0.3, rate * math.sqrt(steps) * 4 / target + 0.2)
    before = least_noise(lambda noise: (DpSgdEvent(rate, noise, steps),), target, delta, guess=guess)
    assert calibrate(rate, steps, target, delta) == before


@pytest.mark.parametrize("target", [1e-5, 1e-12])
def test_calibrate_says_so_when_no_noise_is_enough(target: float) -> None:
    with pytest.raises(ConfigError, match=r"target-epsilon=.* cannot be met"):
        calibrate(1.0, 100, target, DELTA)


def history(noise: float) -> tuple[Event, ...]:
    return (DpSgdEvent(1.0, noise, 1),)


@given(
    scale=st.floats(1e-2, 1e3),
    power=st.floats(0.5, 3.0),
    target=st.floats(0.05, 50.0),
    guess=st.floats(0.3, 100.0),
    bias=st.floats(0.0, 0.3),
)
@settings(max_examples=150)
def test_least_noise_finds_the_least_on_any_falling_curve(
    scale: float, power: float, target: float, guess: float, bias: float
) -> None:
    def curve(events: tuple[Event, ...], _: float, grid: float) -> float:
        (event,) = events
        assert isinstance(event, DpSgdEvent)
        return scale * event.noise_multiplier**-power * (1 + bias * (grid > calibration.DISCRETIZATION))

    def cost(noise: float) -> float:
        return curve(history(noise), DELTA, calibration.DISCRETIZATION)

    assume(cost(1e4) <= target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "pld_epsilon", curve)
        noise = least_noise(history, target, DELTA, guess=guess)

    assert cost(noise) <= target
    assert cost(noise) >= 0.998 * target or cost(noise * 0.9985) > target


ASKED = (CountsEvent(25.0, 30), CountsEvent(4.0, 1))


def test_counts_noise_leaves_alone_what_meets_the_target() -> None:
    assert counts_noise(ASKED, target_epsilon=8.0, delta=DELTA) == 1.0


def test_counts_noise_never_overshoots_and_wastes_little() -> None:
    factor = counts_noise(ASKED, target_epsilon=0.5, delta=DELTA)
    raised = [CountsEvent(factor * event.noise_stddev, event.releases) for event in ASKED]

    assert factor > 1
    assert 0.995 * 0.5 <= spent_by(raised, delta=DELTA).pld <= 0.5


def test_counts_noise_says_so_when_no_noise_is_enough() -> None:
    with pytest.raises(ConfigError, match="cannot be met"):
        counts_noise((CountsEvent(1.0, 100),), target_epsilon=1e-4, delta=DELTA)


def cost_of_counts(pair: float, matrix: float, num_rounds: int) -> float:
    return spent_by((CountsEvent(pair, num_rounds), CountsEvent(matrix, 1)), delta=DELTA).pld


@pytest.mark.parametrize(("target", "num_rounds"), [(8.0, 30), (1.0, 30), (2.0, 6), (0.1, 1)])
def test_split_counts_noise_never_overshoots_and_wastes_little(target: float, num_rounds: int) -> None:
    pair, matrix = split_counts_noise(num_rounds, target_epsilon=target, delta=DELTA)

    assert 0.998 * target <= cost_of_counts(pair, matrix, num_rounds) <= target


def test_split_counts_noise_has_the_least_sum_of_relative_errors() -> None:
    pair, matrix = split_counts_noise(30, target_epsilon=1.0, delta=DELTA)

    for ratio in (0.7 * pair / matrix, 1.5 * pair / matrix):
        other = least_noise(
            lambda noise, ratio=ratio: (CountsEvent(ratio * noise, 30), CountsEvent(noise, 1)), 1.0, DELTA, guess=matrix
        )
        assert (ratio + 10) * other > 1.005 * (pair + 10 * matrix)


@pytest.mark.parametrize(("target", "num_rounds"), [(100.0, 1), (20.0, 6)])
def test_split_counts_noise_stays_above_the_least_noise(target: float, num_rounds: int) -> None:
    pair, matrix = split_counts_noise(num_rounds, target_epsilon=target, delta=DELTA)

    assert matrix == LEAST_COUNTS_NOISE <= pair
    assert cost_of_counts(pair, matrix, num_rounds) <= target


# Before there was a limit, the search on the coarse grid went on to noise of millions, and to gigabytes of memory.
@pytest.mark.parametrize(("num_rounds", "target"), [(30, 0.01), (1, 0.003), (100, 0.05)])
def test_split_counts_noise_meets_a_target_that_the_coarse_grid_cannot_show(num_rounds: int, target: float) -> None:
    pair, matrix = split_counts_noise(num_rounds, target_epsilon=target, delta=DELTA)

    spent = spent_by([CountsEvent(pair, num_rounds), CountsEvent(matrix, 1)], delta=DELTA)
    assert 0.998 * target <= spent.pld <= target


@pytest.mark.parametrize(("num_rounds", "target"), [(30, 0.001), (300, 0.01), (1000, 1e-6)])
def test_split_counts_noise_refuses_a_target_below_the_accountants_grid(num_rounds: int, target: float) -> None:
    with pytest.raises(ConfigError, match="cannot be met"):
        split_counts_noise(num_rounds, target_epsilon=target, delta=DELTA)


def test_no_calibration_asks_for_more_noise_than_the_most_or_far_less_than_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def epsilon(history: tuple[CountsEvent], delta: float, grid: float) -> float:
        asked.append(history[0].noise_stddev)
        # Each release costs a half of a cell more, whatever the noise.
        return 100 / history[0].noise_stddev + 15 * grid

    monkeypatch.setattr(calibration, "pld_epsilon", epsilon)
    noise = least_noise(lambda noise: (CountsEvent(noise, 30),), 0.01, DELTA, guess=15_000.0, most=30_000.0)

    assert 0.999 * 0.01 <= 100 / noise + 0.0015 <= 0.01
    assert 1_000 < min(asked) <= max(asked) <= 30_001
