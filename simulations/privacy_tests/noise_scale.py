"""Privacy test T2, of the noise's scale and shape in each tensor and count."""

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from common.privacy.gaussian_table import CHANCE_BITS, TABLE_STDDEV, alias_table
from common.privacy.plan import SENSITIVITY_SLACK
from simulations.harness.client_harness import ClientHarness, CountsKind
from simulations.harness.harness_streams import ObservedStreams
from simulations.privacy_tests.check import Check

# Chance of a false alarm of each check.
ALARM = 1e-7
_DRAWS = 64_000
_RESIDUES = 64
# The table must have the law of a normal up to so many of its standard deviations, which no sample can show.
_TABLE_REACH = 25
_TABLE_ERROR = 1e-9
_COUNTS = 2_000


def noise_scale(harness: ClientHarness, *, draws: int = _DRAWS, counts: int = _COUNTS) -> Iterator[Check]:
    """Check that the noise has the declared scale and a normal's shape (T2).

    A client without images releases noise alone. Its energy is compared with the declared one.

    Guarantee of what passes: a standard deviation that is off by a factor of 1 + 5 sqrt(0.5 / draws) or more is
    detected almost surely, over all tensors and, with its own number of draws, in each tensor. Over all tensors the
    fourth moment is that of a normal, so noise of another distribution, or without its tails, is detected too. Each
    value is a multiple of a fine enough grid, takes all multiples, and comes from a table with a normal's law.

    Args:
        harness: The configuration.
        draws: Number of normals to look at.
        counts: Number of noised counts of each kind.
    """
    images, plan = harness.images.without_training().without_held_out(), harness.plan
    size = sum(harness.released.values())
    streams, number = ObservedStreams(), max(1, round(draws / size))
    rounds = [harness.noised_sum(harness.ask("train", images, streams=streams)) for _ in range(number)]
    # Computed here and not read from the plan: a wrong `plan.noise_stddev` must not test itself.
    declared = plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK) * np.sqrt(plan.steps_per_round)
    scaled = np.stack(rounds) / declared
    yield scale_check("noise of all tensors", scaled)
    yield shape_check("noise of all tensors", scaled)
    step = coarsest_step(plan.max_grad_norm, size, plan.noise_stddev)
    yield from grid_checks("noise of all tensors", np.stack(streams.sums), step)
    yield _table_check()
    offset = 0
    for name, values in harness.released.items():
        yield scale_check(f"noise of {name}", scaled[:, offset : offset + values])
        offset += values
    if plan.label_noise_stddev is not None:
        noise = [harness.labels() for _ in range(max(1, round(counts / len(harness.classes))))]
        yield scale_check("noise of the label counts", np.concatenate(noise) / plan.label_noise_stddev)
    if plan.counts is None:
        return
    classes = len(harness.classes)
    more: tuple[tuple[CountsKind, str, int, float | None], ...] = ()
    if plan.counts.num_classes is not None:
        # As many cells as a release really has, so that a histogram that lacks noise shows.
        more = (
            ("scores", "the score histograms", 2 * 20 * classes, plan.counts.scores_noise_stddev),
            ("confidence", "the confidence histogram", 2 * 15, plan.counts.calibration_noise_stddev),
        )
    if plan.counts.subgroups:
        cells, stddev = 2 * len(plan.counts.subgroups), plan.counts.subgroups_noise_stddev
        more += (("subgroups", "the counts by subgroup", cells, stddev),)
    releases: tuple[tuple[CountsKind, str, int, float | None], ...] = (
        ("pair", "the pair of counts", 2, plan.counts.noise_stddev),
        ("matrix", "the closing matrix", classes**2, plan.counts.closing_noise_stddev),
        *more,
    )
    for kind, name, cells, stddev in releases:
        noise = [harness.counts(kind) for _ in range(max(1, round(counts / cells)))]
        yield scale_check(f"noise of {name}", np.concatenate(noise) / (stddev or math.nan))


def scale_check(name: str, scaled: np.ndarray) -> Check:
    """Check that values have the energy of independent standard normals.

    Args:
        name: Name of the values.
        scaled: Values over their declared standard deviation, any shape.
    """
    energy, size = float((scaled**2).sum()), scaled.size
    factor = np.sqrt(energy / size)
    fine = chance_of_energy(energy, size) > ALARM
    return Check(f"{name} has the declared scale", fine, f"{factor:.4f} of it over {size} draws")


def chance_of_energy(energy: float, size: int) -> float:
    """Return the two-sided p-value of a sum of squared standard normals.

    Args:
        energy: The sum of squares.
        size: Degrees of freedom.
    """
    return 2 * float(min(stats.chi2.sf(energy, size), stats.chi2.cdf(energy, size)))


def coarsest_step(max_grad_norm: float, size: int, stddev: float) -> float:
    """Return the step of the coarsest grid that noise may be on.

    Args:
        max_grad_norm: The clip bound.
        size: Number of values in one sum.
        stddev: Standard deviation of what one draw adds.
    """
    # Half of the slack is for the grid, and the noise has at least 2^24 steps.
    return float(2.0 ** np.floor(np.log2(min(0.5 * SENSITIVITY_SLACK * max_grad_norm / np.sqrt(size), stddev / 2**24))))


def grid_checks(name: str, noise: np.ndarray, step: float) -> Iterator[Check]:
    """Check that noise lies on the grid and takes all of its values.

    Noise that lacks its low digits, or that repeats one draw in several digits, takes few of them.

    Args:
        name: Name of the values.
        noise: Noised sums of nothing, any shape.
        step: Step of the grid.
    """
    steps = noise.ravel() / step
    whole = np.rint(steps).astype(np.int64)
    yield Check(f"{name} lies on the grid", bool(np.array_equal(whole, steps)), f"{whole.size} draws")
    residues = np.bincount(whole % _RESIDUES, minlength=_RESIDUES)
    fine = float(stats.chisquare(residues).pvalue) > ALARM
    yield Check(f"{name} has all low digits", fine, f"{residues.min()} to {residues.max()} of each residue")
    width = max(1.0, float(np.sqrt((steps**2).mean())))
    # Chance that two normals of this width are rounded to the same value, times the number of pairs.
    expected = whole.size * (whole.size - 1) / 2 / (2 * np.sqrt(np.pi) * width)
    equal = int(np.sum([count * (count - 1) // 2 for count in np.unique(whole, return_counts=True)[1]]))
    fine = float(stats.poisson.sf(equal - 1, expected)) > ALARM
    yield Check(f"{name} takes all values of the grid", fine, f"{equal} equal pairs, {expected:.1f} expected")


def _table_check() -> Check:
    """Check that the noise table has a normal's law to its end.

    The law is added up from the columns, without the code that made them.
    """
    table = alias_table()
    law, full = [0] * len(table.keep), 1 << CHANCE_BITS
    for column, (keep, alias) in enumerate(zip(table.keep, table.alias.tolist(), strict=True)):
        law[column] += keep
        law[alias] += full - keep
    # Columns are numbers of 16 bits with sign, as Python's negative indices are.
    values = np.arange(-_TABLE_REACH * TABLE_STDDEV, _TABLE_REACH * TABLE_STDDEV + 1)
    found = np.array([law[value] / (len(law) << CHANCE_BITS) for value in values.tolist()])
    ratio = found / stats.norm.pdf(values, scale=TABLE_STDDEV)
    fine = bool(np.all(np.abs(ratio - 1) < _TABLE_ERROR))
    return Check("the noise table has a normal's law", fine, f"{ratio.min():.6f} to {ratio.max():.6f} of it")


def each_value_check(name: str, scaled: np.ndarray) -> Check:
    """Check that each value of a vector has noise of its own.

    Energy that is moved from some values to the others shows in no sum over all of them.

    Args:
        name: Name of the values.
        scaled: Values over their declared standard deviation, shape (draws, p), two draws at least.
    """
    draws, size = scaled.shape
    energies = (scaled**2).sum(axis=0)
    least, most = float(energies.min()), float(energies.max())
    # Times the number of values: so many chances has the smallest of them.
    chance = size * 2 * min(float(stats.chi2.cdf(least, draws)), float(stats.chi2.sf(most, draws)))
    low, high = np.sqrt(least / draws), np.sqrt(most / draws)
    seen = f"{low:.3f} to {high:.3f} of the declared scale over {draws} draws of {size} values"
    return Check(f"{name} is in each value", chance > ALARM, seen)


def shape_check(name: str, scaled: np.ndarray) -> Check:
    """Check the ratio of the fourth moment to the squared second moment.

    It is 3 for normals of any scale, 6 for Laplace noise and 1.8 for uniform noise.
    """
    square = scaled.ravel() ** 2
    moment = float((square**2).mean() / max(square.mean() ** 2, np.finfo(np.float64).tiny))
    fine = abs(moment - 3) <= 6 * np.sqrt(24 / square.size)
    return Check(
        f"{name} has the shape of a normal", bool(fine), f"fourth moment {moment:.3f} over {square.size} draws"
    )
