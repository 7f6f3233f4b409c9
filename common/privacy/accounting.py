"""Epsilon of events, an upper bound by PLD that is cross-checked by RDP.

Epsilon is computed from all events of a unit together. Epsilons are never added up. Neighbouring data sets differ in
one unit, in the zero-out sense (dp_accounting's REPLACE_SPECIAL).
"""

import importlib.util
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, PrivacyError
from common.privacy.counts.discrete_gaussian import LARGEST_FINE_STDDEV
from common.privacy.events import CountsEvent, DpSgdEvent, Event, merged, own_shares
from common.privacy.noise_error import MAX_EPSILON, delta_left
from common.system.figure_cache import FigureCache

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

DISCRETIZATION = 1e-4
_MOST_HALVINGS = 100  # from 10^9 to 10^-6 takes 50
_MOST_VALUES = 1 << 18  # at once, so that large groups take no gigabytes
_AGREEMENT = 1e-3  # how far RDP may be below PLD
_MOST_FINE = 1.0  # the largest epsilon that is looked at on a finer grid
_MOST_COUNTS_NOISE = float(LARGEST_FINE_STDDEV)
NEIGHBORING_RELATION = "add/remove one unit (zero-out)"
ACCOUNTANT = "dp-accounting PLD at 1e-4, cross-checked with RDP (Opacus)"
FIGURES = FigureCache()
_ORDERS = (*(1.1 + 0.1 * x for x in range(40)), *(5.5 + 0.5 * x for x in range(10)), *range(11, 65))
_ORDERS += (80, 96, 128, 256, 512)


@dataclass(frozen=True)
class Spent:
    """Two upper bounds on the epsilon of one history at one delta.

    `pld`, by privacy loss distributions, is the official figure, for plans that were fixed in advance. `rdp`, by Renyi
    divergences, is looser, but the sum is a valid filter for plans that were chosen after earlier results were seen
    (Feldman and Zrnic 2021).
    """

    pld: float
    rdp: float


NOTHING = Spent(0.0, 0.0)
# Above every epsilon that is computed. It promises nothing.
NO_PROTECTION = Spent(math.inf, math.inf)


def spent_by(events: Iterable[Event], *, delta: float, fresh: bool = False) -> Spent:
    """Return what all events on one unit cost together.

    Both bounds are zero for no events. With `fresh` the figures are computed without the cache on disk, as an audit
    must.

    Raises:
        ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
        PrivacyError: RDP is below PLD, so one of the two accountants is wrong, or the grid is too coarse for so many
            events. Or the noise's error takes more than a tenth of delta.

    Source: Meiser and Mohammadi 2018, doi:10.1145/3243734.3243765; Doroshenko et al. 2022, arXiv:2207.04380 (PLD);
    Mironov et al. 2019, arXiv:1908.10530 (RDP); Feldman and Zrnic 2021, arXiv:2008.11193 (RDP filters).
    """
    history = merged(events)
    if not history:
        return NOTHING
    rdp = FIGURES.get_or_compute("rdp", (history, delta), lambda: rdp_epsilon(history, delta), bypass=fresh)
    # Check RDP first: PLD needs gigabytes of memory for so little noise. `not <=` also refuses NaN.
    if not rdp <= MAX_EPSILON:
        raise ConfigError(
            f"privacy: so little noise gives epsilon {rdp:.0f}, which promises nothing: raise "
            "privacy.noise-multiplier, or set privacy.mechanism=none to say so"
        )
    pld = FIGURES.get_or_compute(
        "pld", (history, delta, DISCRETIZATION), lambda: pld_epsilon(history, delta, DISCRETIZATION), bypass=fresh
    )
    # PLD is the tighter bound. If it is the larger one by more than rounding, one accountant has a bug, or the grid is
    # too coarse for so many events. A bound that cannot be checked is not reported, and never the smaller one instead.
    if rdp < pld - _AGREEMENT:
        raise PrivacyError(_disagreement(history, delta, rdp, pld))
    return Spent(pld, rdp)


def spent_alone(events: Iterable[Event], *, delta: float, fresh: bool = False) -> Spent:
    """Return what events cost under a client's own share of the noise.

    That is the bound against a server with which all other clients collude. It is `NO_PROTECTION` above `MAX_EPSILON`.
    Without noise in shares it is what `spent_by` returns.

    Raises:
        PrivacyError: The accountants disagree, or the noise's error takes more than a tenth of delta.
    """
    try:
        return spent_by(own_shares(events), delta=delta, fresh=fresh)
    except ConfigError:
        return NO_PROTECTION


def _disagreement(history: tuple[Event, ...], delta: float, rdp: float, pld: float) -> str:
    """Return why RDP is below PLD, with what helps."""
    figures = f"RDP {rdp:.4f} is below PLD {pld:.4f}"
    counts = [event for event in history if isinstance(event, CountsEvent)]
    # The loss of counts alone has few cells, however fine the grid is. That of sampled steps could take gigabytes.
    finer = DISCRETIZATION / (100 if len(counts) == len(history) else 10)
    if not counts or not pld <= _MOST_FINE or rdp < pld_epsilon(history, delta, finer) - _AGREEMENT:
        return f"accountants disagree: {figures}; nothing is reported"
    return (
        f"so small an epsilon of {sum(event.count for event in counts):,} private counts cannot be checked: PLD rounds "
        f"each of them up to a grid of {DISCRETIZATION:g}, and {figures} by more than {_AGREEMENT:g}; nothing is "
        "reported\n  ask for a larger epsilon, fewer rounds, or counts in fewer of them (evaluation.every)"
    )


@FIGURES.in_memory(4096)
def pld_epsilon(history: tuple[Event, ...], delta: float, discretization: float) -> float:
    """Compute epsilon by the privacy loss distribution of a merged history.

    A larger `discretization` of the loss grid is faster and gives a larger epsilon.

    Raises:
        PrivacyError: The noise's error takes too much of delta.
    """
    left = delta_left(history, delta)
    ideal = merged(map(_with_ideal_noise, history))
    parts = [_loss_distribution(event.counted(1), discretization).self_compose(event.count) for event in ideal]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return float(whole.get_epsilon_for_delta(left))


def _with_ideal_noise(event: Event) -> Event:
    """Return an event of ideal noise in one histogram.

    The sampler's error is charged in delta. Noise is independent from count to count. So a release in which a unit
    changes one count of each of K histograms costs exactly what K releases of one histogram cost.
    """
    if isinstance(event, DpSgdEvent):
        return replace(event, sampler=0, draws_per_step=0, noise_shares=0)
    # However many shares: 1 says that the noise is Gaussian, and not discrete.
    shares = min(1, event.noise_shares)
    return replace(event, releases=event.releases * event.votes, l2_sensitivity=1.0, noise_shares=shares)


@FIGURES.in_memory(16)
def _loss_distribution(event: Event, discretization: float) -> "PrivacyLossDistribution":
    """Return the privacy loss distribution of an event that happens once."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    grid: dict[str, Any] = {"value_discretization_interval": discretization}
    relation = pld.NeighborRel.REPLACE_SPECIAL
    if not isinstance(event, DpSgdEvent):
        if not event.noise_shares:
            return _of_discrete_gaussian(event, discretization)
        noise = event.noise_stddev / event.group_size
        return pld.from_gaussian_mechanism(noise, neighboring_relation=relation, **grid)
    if event.group_size == 1 or event.sample_rate == 1:
        noise = event.noise_multiplier / event.group_size
        return pld.from_gaussian_mechanism(
            noise, sampling_prob=event.sample_rate, neighboring_relation=relation, **grid
        )
    return _of_groups(event, discretization)


def _of_discrete_gaussian(event: CountsEvent, discretization: float) -> "PrivacyLossDistribution":
    """Return what `from_discrete_gaussian_mechanism` returns, bit for bit, in a tenth of the time.

    More noise than `_MOST_COUNTS_NOISE` is taken for that much, because memory and time grow with it. That is an upper
    bound. Whole noises s and t above it with t > s are alike up to a factor: noise of t is the sum of noise of s and of
    noise of sqrt(t^2 - s^2), each chance up to a factor exp(5 exp(-2 pi^2 r)) with 1/r = 1/s^2 + 1/(t^2 - s^2). Here r
    is over 100,000, so the factor is 1. Adding noise is post-processing.

    Source: Kairouz, Liu and Steinke 2021, arXiv:2102.06387, Theorem 9 (sums of discrete Gaussians).
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.pld.privacy_loss_mechanism import DiscreteGaussianPrivacyLoss

    shift, noise = event.group_size, min(event.noise_stddev, _MOST_COUNTS_NOISE)
    mechanism = DiscreteGaussianPrivacyLoss(noise, sensitivity=shift)
    tail = mechanism.privacy_loss_tail()
    values = np.arange(tail.lower_x_truncation - 1, tail.upper_x_truncation + 1)
    chances = np.diff(mechanism.mu_upper_cdf(values))
    losses = shift * (-0.5 * shift - values[1:]) / noise**2
    # Each loss is rounded up to the grid. Losses fall while values grow, so the first cell is the largest.
    cells = np.ceil(losses / discretization).astype(np.int64)
    sums = np.bincount(cells[0] - cells, weights=chances)
    filled = np.unique(cells)[::-1]
    masses = {int(cell): sums[cells[0] - cell] for cell in filled}
    infinite = tail.tail_probability_mass_function[np.inf]
    return PrivacyLossDistribution(pld_pmf.create_pmf(masses, discretization, infinite, pessimistic_estimate=True))


def _of_groups(event: DpSgdEvent, discretization: float) -> "PrivacyLossDistribution":
    """Return what `from_mixture_gaussian_mechanism` returns, bit for bit, in a twentieth of the time.

    The library looks for the noise at which each loss is reached, one point after another. Here the points of all
    losses are taken together.

    Source: Ganesh 2024, arXiv:2401.10294 (group-level DP-SGD as a mixture of Gaussians).
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, MixtureGaussianPrivacyLoss

    class Mixture(MixtureGaussianPrivacyLoss):  # type: ignore[misc]
        def _inverse_privacy_losses_with_range(
            self, privacy_losses: np.ndarray, bounds: tuple[float, float], precision: float = 1e-6
        ) -> np.ndarray:
            return _inverses(self, privacy_losses, bounds, precision)

    members = np.arange(event.group_size + 1).tolist()
    chances = _chances(event.group_size, event.sample_rate)

    def masses(direction: AdjacencyType) -> Any:
        mixture = Mixture(event.noise_multiplier, members, chances, adjacency_type=direction)
        ends = mixture.connect_dots_bounds()
        low, high = math.floor(ends.epsilon_lower / discretization), math.ceil(ends.epsilon_upper / discretization)
        deltas = mixture.get_delta_for_epsilon(np.arange(low, high + 1) * discretization)
        return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(discretization, low, high, deltas)

    return PrivacyLossDistribution(masses(AdjacencyType.REMOVE), masses(AdjacencyType.ADD))


def _inverses(mixture: Any, losses: np.ndarray, bounds: tuple[float, float], precision: float) -> np.ndarray:
    """Find by bisection the noise at which each loss is reached, as dp_accounting does.

    Args:
        mixture: A `MixtureGaussianPrivacyLoss`.
        losses: Rising, shape (losses,).
        bounds: Between which all noises are.
        precision: Noises are multiples of it.

    Raises:
        PrivacyError: The bounds are so far apart that floats between them are not within `precision`.
    """
    lows, highs = np.full(len(losses), bounds[0]), np.full(len(losses), bounds[1])
    for _ in range(_MOST_HALVINGS):
        unfinished = highs - lows > precision
        if not unfinished.any():
            return np.floor(highs / precision) * precision
        middles = (lows + highs) / 2
        # Losses that rise have noises that fall, so those of one interval are side by side.
        first = np.flatnonzero(np.append(True, middles[1:] != middles[:-1]))
        found = _losses_at(mixture, middles[first]).repeat(np.diff(np.append(first, len(losses))))
        below = losses < found
        lows, highs = np.where(unfinished & below, middles, lows), np.where(unfinished & ~below, middles, highs)
    raise PrivacyError(f"losses of a group are reached at noises between {bounds}, too far apart to be told")


def _losses_at(mixture: Any, noises: np.ndarray) -> np.ndarray:
    """Return `mixture.privacy_loss` of each noise."""
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    constants, together = mixture._precompute_privacy_loss_constants[:, None], np.empty(len(noises))
    some = max(1, _MOST_VALUES // len(constants))
    for start in range(0, len(noises), some):
        shifts = mixture.sensitivities[:, None] * noises[start : start + some] / mixture._variance
        if mixture.adjacency_type == AdjacencyType.ADD:
            together[start : start + some] = -np.logaddexp.reduce(constants + shifts)
        else:
            together[start : start + some] = np.logaddexp.reduce(constants - shifts)
    return together


def _chances(group_size: int, sample_rate: float) -> list[float]:
    """Return the chance of each number of group members in a batch."""
    from scipy.stats import binom

    return list(map(float, binom.pmf(np.arange(group_size + 1), group_size, sample_rate)))


@FIGURES.in_memory(4096)
def rdp_epsilon(history: tuple[Event, ...], delta: float) -> float:
    """Compute epsilon by the Renyi divergences of a merged history.

    Source: Mironov et al. 2019, arXiv:1908.10530 (sampled Gaussian); Canonne et al. 2020, arXiv:2004.00010 (discrete
    Gaussian: that of the continuous one is a bound).

    Raises:
        PrivacyError: The noise's error takes too much of delta.
    """
    left = delta_left(history, delta)
    with warnings.catch_warnings():
        # Opacus warns if the best order is the first or the last. That only makes the bound looser.
        warnings.simplefilter("ignore")
        total = sum(event.count * _divergences(event.counted(1)) for event in history)
        epsilon = float(_opacus_rdp().get_privacy_spent(orders=list(_ORDERS), rdp=total, delta=left)[0])
    # With a large delta the formula can be negative, which means 0. NaN must stay NaN, so that it is refused.
    return epsilon if not epsilon < 0 else 0.0


@FIGURES.in_memory(4096)
def _divergences(event: Event) -> np.ndarray:
    """Return upper bounds on an event's Renyi divergences, shape (orders,).

    Those of repeated events add up, so an event that happens once is enough.
    """
    if not isinstance(event, DpSgdEvent):
        return np.asarray(_ORDERS) * event.releases * event.votes * event.group_size**2 / (2 * event.noise_stddev**2)
    # A group is in the batch if any member is, and then changes the sum by at most `group_size` bounds.
    rate = 1.0 - (1.0 - event.sample_rate) ** event.group_size
    noise = event.noise_multiplier / event.group_size
    rdp = _opacus_rdp()
    return np.asarray(rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=event.steps, orders=list(_ORDERS)))


@cache
def _opacus_rdp() -> ModuleType:
    """Load Opacus' RDP analysis without the rest of Opacus.

    The analysis needs NumPy and SciPy alone. The whole of Opacus would load torch, which takes seconds.
    """
    package = importlib.util.find_spec("opacus")
    if package is None or package.origin is None:
        raise PrivacyError(
            "Opacus is not installed, and nothing is reported without the cross-check: pip install opacus"
        )
    file = Path(package.origin).parent / "accountants" / "analysis" / "rdp.py"
    spec = importlib.util.spec_from_file_location("bract_opacus_rdp", file)
    if spec is None or spec.loader is None:
        raise PrivacyError(f"Opacus' RDP analysis is not at {file}: install the version of Opacus that Bract names")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
