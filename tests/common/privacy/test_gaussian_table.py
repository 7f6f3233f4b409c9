"""Law of the noise table, sums of its draws, and the stated bound, recomputed from the constants."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from common.errors import ConfigError
from common.privacy import gaussian_table as module
from common.privacy.gaussian_table import (
    CHANCE_BITS,
    MAX_GROWTH,
    MAX_STDDEV,
    ROUNDING_STDDEV,
    TABLE_END,
    TABLE_STDDEV,
    TOTAL_VARIATION,
    alias_table,
    factors,
    gaussian_integers,
)
from common.privacy.noise import SecureStream

BOUND = Decimal(TOTAL_VARIATION)
STDDEVS = [Fraction(1, 3), Fraction(1024), Fraction(2**24), Fraction(10**9 + 7, 3), Fraction(MAX_STDDEV)]


class Given:
    """A stream of given bytes, then of zeros."""

    def __init__(self, *parts: bytes) -> None:
        self.parts, self.sizes = list(parts), list[int]()

    def random_bytes(self, size: int) -> bytes:
        self.sizes.append(size)
        part = self.parts.pop(0) if self.parts else bytes(size)
        assert len(part) == size
        return part


def law_of_table() -> list[int]:
    """Add up each value's chance, in units of 2^-496, in the order of the columns."""
    table, full = alias_table(), 1 << CHANCE_BITS
    law = [0] * len(table.keep)
    for column, (keep, alias) in enumerate(zip(table.keep, table.alias.tolist(), strict=True)):
        law[column] += keep
        law[alias] += full - keep
    return law


def ripple(width: Decimal) -> Decimal:
    """Return how far a sum of normal densities over all whole numbers can be from 1, by Poisson's formula."""
    pi = Decimal("3.14159265358979323846")
    # The first term is 2 exp(-2 pi^2 w^2), and all others together are less than that.
    return 4 * (-2 * pi**2 * width**2).exp()


def table_variation() -> Decimal:
    """Return the total variation between the table and the discrete Gaussian on all whole numbers."""
    law = law_of_table()
    with localcontext() as context:
        context.prec = 180
        heights = [(Decimal(-value * value) / (2 * TABLE_STDDEV**2)).exp() for value in range(TABLE_END + 1)]
        total, unit = 2 * sum(heights) - heights[0], Decimal(2) ** -(CHANCE_BITS + 16)
        inside = sum(abs(law[value] * unit - heights[abs(value)] / total) for value in range(-TABLE_END, TABLE_END + 1))
        # What the Gaussian has beyond the end is at most 2 exp(-end^2 / 2) times a few.
        outside = 4 * (-((Decimal(TABLE_END) / TABLE_STDDEV) ** 2) / 2).exp()
        assert sum(law) * unit == 1
        assert not any(law[TABLE_END + 1 : -TABLE_END])
        return inside / 2 + outside


def test_the_stated_bound_follows_from_the_table_and_the_constants() -> None:
    most = len(factors(Fraction(MAX_STDDEV)))

    with localcontext() as context:
        context.prec = 180
        sums = ripple(Decimal(TABLE_STDDEV) / MAX_GROWTH)
        rounding = ripple(Decimal(ROUNDING_STDDEV))
        draws = ripple(Decimal(TABLE_STDDEV))
        # Each factor of the density is 1 + e or 1 / (1 - e). For such small e, e (1 + 1/1000) covers the product.
        normals = ((most - 1) * sums + most * draws + rounding) * Decimal("1.001")
        found = most * table_variation() + normals

    assert found <= BOUND
    # The statement is not made larger than it needs to be: otherwise a worse table would pass.
    assert found > BOUND / 1024


def test_the_theorem_bounds_a_sum_that_is_small_enough_to_be_worked_out() -> None:
    """With little smoothing, the errors of sum and rounding are so large that they show in double precision."""
    stddev, factor, rounding = 3.0, 4, 0.6
    wide = np.arange(-400, 401)
    draw = np.exp(-(wide**2) / (2 * stddev**2))
    draw /= draw.sum()
    stretched = np.zeros(2 * 4 * 400 + 1)
    stretched[::factor][: len(wide)] = draw
    found = np.convolve(stretched[: factor * 800 + 1], draw)
    values = np.arange(len(found)) - (len(found) - 1) // 2
    width = stddev * math.hypot(1, factor)
    # A normal of a little less width, rounded at random as `rounding` says, on a fine grid.
    below, fine = math.sqrt(width**2 - rounding**2), np.linspace(-120, 120, 48_001)
    normal = stats.norm.pdf(fine, scale=below) * (fine[1] - fine[0])
    near = values[np.abs(values) <= 130]
    choose = np.exp(-((near[:, None] - fine) ** 2) / (2 * rounding**2))
    ideal = (choose / choose.sum(axis=0)) @ normal

    distance = 0.5 * np.abs(found[np.abs(values) <= 130] - ideal).sum()

    ripples = [2 * math.exp(-2 * math.pi**2 * w**2) for w in (stddev * 1 / math.hypot(1, factor), rounding)]
    assert 1e-6 < distance <= 1.01 * sum(ripples)
    # The sum's own part alone, so that a bound that forgot it would fail.
    assert distance > 1e-2 * max(ripples)


@pytest.mark.parametrize("stddev", STDDEVS, ids=str)
def test_factors_keep_what_the_proof_needs(stddev: Fraction) -> None:
    found, norms = factors(stddev), np.cumsum([factor**2 for factor in factors(stddev)], dtype=object)

    assert found[0] == 1
    assert TABLE_STDDEV**2 * norms[-1] >= stddev**2 + ROUNDING_STDDEV**2
    assert all(after <= MAX_GROWTH**2 * before for before, after in pairwise(norms))
    # Sums stay exact in float64.
    assert sum(found) * TABLE_END < 2**53


@pytest.mark.parametrize("stddev", [2**24, 2**25 - 1, 2**31, 10**12])
def test_noise_of_a_wide_stddev_is_wider_by_little(stddev: int) -> None:
    width = TABLE_STDDEV * math.sqrt(sum(factor**2 for factor in factors(Fraction(stddev))))

    assert 1 <= width / stddev < 1.0001


@pytest.mark.parametrize("stddev", [Fraction(0), Fraction(-1), Fraction(MAX_STDDEV + 1)], ids=str)
def test_a_stddev_out_of_range_is_refused(stddev: Fraction) -> None:
    with pytest.raises(ConfigError, match="change the noise"):
        gaussian_integers(1, stddev=stddev, stream=SecureStream())


def test_noise_is_normal_whole_and_of_the_stated_scale() -> None:
    noise = gaussian_integers(40_000, stddev=Fraction(3 * 2**24), stream=SecureStream())

    assert np.array_equal(noise, np.rint(noise))
    assert stats.kstest(noise / (3 * 2**24), "norm").pvalue > 1e-6
    assert stats.chisquare(np.bincount(noise.astype(np.int64) % 256, minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize("size", [0, 1, 6_400, 6_401, 13_000])
def test_any_number_of_values_can_be_drawn(size: int) -> None:
    noise = gaussian_integers(size, stddev=Fraction(2**24), stream=SecureStream())

    assert noise.shape == (size,)
    assert noise.dtype == np.float64
    # Each value is drawn.
    assert np.isfinite(noise).all()


def test_a_value_is_the_weighted_sum_of_its_draws() -> None:
    table = alias_table()
    columns = np.array([5, 65_530, 77], dtype="<u2")
    # A coin of zero keeps the column where its chance has any of the first 16 bits.
    assert (table.keep_top[columns] > 0).all()
    stream = Given(columns.tobytes() + bytes(6))

    (found,) = gaussian_integers(1, stddev=Fraction(20_000_000), stream=stream)

    assert found == 5 * 1 + (65_530 - 65_536) * 77 + 77 * 19_532


@pytest.mark.parametrize("column", [900, 40_000])
def test_a_coin_that_ties_is_decided_by_all_its_bits(column: int) -> None:
    """The first 16 bits are equal to the table's. The other 464 are just below, at, and above the chance."""
    table, more = alias_table(), CHANCE_BITS - 16
    rest = table.keep[column] % (1 << more)
    ours = column if column < 32_768 else column - 65_536
    first = np.array([column, table.keep_top[column]], dtype="<u2").tobytes()
    assert rest > 0

    for low, expected in ((rest - 1, ours), (rest, int(table.alias[column])), (rest + 1, int(table.alias[column]))):
        stream = Given(first, low.to_bytes(more // 8, "big"))
        assert table.draw(1, stream).tolist() == [expected]
        assert stream.sizes == [4, more // 8]


def test_a_coin_above_the_chance_takes_the_alias() -> None:
    table = alias_table()
    column = int(np.flatnonzero((table.keep_top > 0) & (table.keep_top < 65_535))[0])
    coins = [int(table.keep_top[column]) + step for step in (-1, 1)]
    words = np.array([[column, column], coins], dtype="<u2")

    assert table.draw(2, Given(words.tobytes())).tolist() == [column, int(table.alias[column])]


def test_the_table_is_made_once() -> None:
    assert module.alias_table() is alias_table()
