"""The law of the discrete Gaussian sampler, part by part and whole; its bounds; its arithmetic."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss
from scipy import stats

from common.errors import ConfigError, PrivacyError
from common.privacy.counts import discrete_gaussian as dg
from common.privacy.counts.discrete_gaussian import discrete_gaussian, sampled_stddev, scaled_distance, uniform_below

DRAWS = 100_000


class FixedStream:
    """Bytes that a test can repeat."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def random_bytes(self, size: int) -> bytes:
        return self.generator.bytes(size)


class ScriptedStream:
    """The given words, in order, and no others."""

    def __init__(self, *words: int) -> None:
        self.rest = b"".join(word.to_bytes(8, "little") for word in words)

    def random_bytes(self, size: int) -> bytes:
        given, self.rest = self.rest[:size], self.rest[size:]
        return given


@cache
def draws(stddev: Fraction | float) -> np.ndarray:
    return discrete_gaussian(DRAWS, noise_stddev=stddev, stream=FixedStream())


def goodness_of_fit(sample: np.ndarray, stddev: float) -> float:
    """Chi-square p value against the law that the accountant assumes; tails past three stddevs are merged."""
    edge = math.ceil(3 * stddev)
    below = DiscreteGaussianPrivacyLoss(stddev).noise_cdf(np.arange(-edge - 1, edge + 1))
    below[[0, -1]] = 0, 1
    observed = np.bincount(np.clip(sample, -edge, edge) + edge, minlength=2 * edge + 1)
    return float(stats.chisquare(observed, sample.size * np.diff(below)).pvalue)


class NextDieError(Exception):
    """Carries the number of faces of the die that a path of faces ends at."""


def chance_of(event: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, unfollowed: Fraction) -> tuple[float, float]:
    """Bounds on an event's chance from all paths of faces, but for those of less chance than `unfollowed`."""
    faces: Iterator[int] = iter(())

    def die(bound: int, size: int, stream: object) -> np.ndarray:
        face = next(faces, None) if size else 0
        if face is None:
            raise NextDieError(bound)
        return np.full(size, face)

    monkeypatch.setattr(dg, "uniform_below", die)
    low, high, paths = Fraction(0), Fraction(0), [((), Fraction(1))]
    while paths:
        path, chance = paths.pop()
        faces = iter(path)
        try:
            happened = event()
            low, high = low + chance * happened, high + chance * happened
        except NextDieError as at:
            if chance < unfollowed:
                high += chance
            else:
                paths += [((*path, face), chance / at.args[0]) for face in range(at.args[0])]
    return float(low), float(high)


@pytest.mark.parametrize("stddev", [Fraction(77, 256), 0.5, 1.0, 4.0, 4.1, 25.0])
def test_discrete_gaussian_has_the_law_that_the_accountant_assumes(stddev: Fraction | float) -> None:
    assert goodness_of_fit(draws(stddev), float(sampled_stddev(stddev))) > 1e-6


@pytest.mark.parametrize("stddev", [1.0, 4.0, 25.0, 65_535.3, 1_000_000.5])
def test_discrete_gaussian_has_the_stated_variance(stddev: float) -> None:
    ratio = (draws(stddev).astype(np.float64) ** 2).mean() / float(sampled_stddev(stddev)) ** 2

    # Five standard errors; a scale that is 2 % off is nine away.
    assert abs(ratio - 1) < 5 * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize("wrong", [0.98, 1.02])
def test_law_and_variance_checks_reject_a_scale_that_is_two_percent_off(wrong: float) -> None:
    assert goodness_of_fit(draws(4.0), 4.0 * wrong) < 1e-6
    assert abs((draws(4.0) ** 2).mean() / (4.0 * wrong) ** 2 - 1) > 5 * math.sqrt(2 / DRAWS)


def test_discrete_gaussian_at_a_large_stddev_is_normal() -> None:
    assert stats.kstest(draws(1_000_000.5) / 1_000_001, "norm").pvalue > 1e-6


def test_discrete_gaussian_is_symmetric() -> None:
    signs = np.sign(draws(4.0))

    assert abs(signs.sum()) < 5 * math.sqrt(np.count_nonzero(signs))


def test_discrete_gaussian_places_carry_no_information_about_size() -> None:
    blocks = (draws(4.0).reshape(20, -1) ** 2).mean(axis=1)

    assert (np.abs(blocks / 16 - 1) < 5 * math.sqrt(2 * 20 / DRAWS)).all()


def test_discrete_gaussian_follows_a_case_worked_by_hand() -> None:
    # s = 1, t = 2. Laplace: low part 1, kept as the 1/2 coin fails on turn 1; no further
    # e^-1 heads as turn 1 is certain and turn 2 fails; sign negative: x = -1.
    laplace = [1, 1, 0, 1, 1]
    # Distance |1 - 1/2| / 1 = 0 + 1/2: the coin of chance w^2 / 2 = 0 fails at once, and so does
    # the first of the three coins for f^2 / 2; runs of length 0 are even, so both are heads.
    stream = ScriptedStream(*laplace, 0, 1)

    assert discrete_gaussian(1, noise_stddev=1.0, stream=stream).tolist() == [-1]
    assert stream.rest == b""


EXACT_CHANCES = [
    *((partial(dg.bernoulli_exp, np.array([n]), 4), True, math.exp(-n / 4)) for n in (0, 1, 3, 4, 10)),
    *((partial(dg.bernoulli_exp_half_square, *np.divmod([n], 3), 3), True, math.exp(-n * n / 18)) for n in (0, 4, 7)),
    *((partial(dg.laplace_attempts, 1, scale=1), x, math.exp(-abs(x)) * (1 - math.exp(-1)) / 2) for x in (0, -1)),
]


@pytest.mark.parametrize(("draw", "value", "chance"), EXACT_CHANCES)
def test_parts_have_the_exact_chance_over_all_paths(
    draw: Callable[..., np.ndarray], value: int, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = chance_of(lambda: draw(stream=FixedStream()).tolist() == [value], monkeypatch, Fraction(1, 30_000))

    assert low - 1e-12 < chance < high + 1e-12
    assert high - low < 0.015


def test_uniform_below_is_unbiased_when_a_quarter_of_the_words_must_go() -> None:
    thirds = uniform_below(3 << 61, 30_000, FixedStream()) >> 61

    # Without rejection the thirds would come as 3 : 3 : 2.
    assert stats.chisquare(np.bincount(thirds, minlength=3)).pvalue > 1e-6


def test_uniform_below_throws_away_only_words_past_the_last_whole_multiple() -> None:
    assert uniform_below(3, 2, ScriptedStream(2**64 - 1, 2**64 - 2, 7)).tolist() == [2, 1]
    assert uniform_below(1 << 63, 2, ScriptedStream(2**64 - 1, 2**63)).tolist() == [2**63 - 1, 0]


def test_uniform_below_refuses_a_stream_that_runs_short() -> None:
    with pytest.raises(ValueError, match="smaller"):
        uniform_below(3, 2, ScriptedStream(7))


@pytest.mark.parametrize("stddev", [Fraction(1, 1024), 0.3, 4.1, 2**16 - Fraction(1, 3), 2**24 - Fraction(1, 3)])
def test_scaled_distance_is_exact_up_to_its_bound_and_refuses_past_it(stddev: Fraction | float) -> None:
    exact = sampled_stddev(stddev)
    scale = int(exact) + 1
    magnitudes = [0, 1, scale, 1024 * scale - 1, 1024 * scale]

    whole, rest, denominator = scaled_distance(np.array(magnitudes), exact)

    for magnitude, w, r in zip(magnitudes, whole.tolist(), rest.tolist(), strict=True):
        assert w + Fraction(r, denominator) == abs(magnitude - exact**2 / scale) / exact
    assert int(whole.max()) ** 2 < 2**63
    assert (rest < denominator).all()
    with pytest.raises(PrivacyError, match="too large"):
        scaled_distance(np.array([1024 * scale + 1]), exact)


@pytest.mark.parametrize("stddev", [1e-9, 0.3, Fraction(1, 3), 4.0, 65_536.0, 65_536.5, 2.0**24])
def test_sampled_stddev_is_never_smaller_and_is_exact_as_a_float(stddev: Fraction | float) -> None:
    used = sampled_stddev(stddev)

    assert 0 <= used - Fraction(stddev) < (Fraction(1, 1024) if stddev <= 65_536 else 1)
    assert Fraction(float(used)) == used == sampled_stddev(used)


@pytest.mark.parametrize("stddev", [0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**24 + 1, Fraction(10**400)])
def test_discrete_gaussian_refuses_a_stddev_out_of_range(stddev: Fraction | float) -> None:
    with pytest.raises(ConfigError, match="noise_stddev"):
        discrete_gaussian(1, noise_stddev=stddev, stream=FixedStream())


def test_discrete_gaussian_of_size_zero_reads_nothing_and_of_negative_size_is_refused() -> None:
    assert discrete_gaussian(0, noise_stddev=4.0, stream=ScriptedStream()).shape == (0,)
    with pytest.raises(ConfigError, match="size"):
        discrete_gaussian(-1, noise_stddev=4.0, stream=ScriptedStream())
