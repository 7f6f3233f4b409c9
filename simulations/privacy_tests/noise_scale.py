"""T2: the noise is as strong as it was declared, in each tensor and in each count."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from common.privacy.plan import SENSITIVITY_SLACK
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import Check

ALARM = 1e-7  # chance of a false alarm of each check
_DRAWS = 64_000
_COUNTS = 2_000


def noise_scale(harness: ClientHarness, *, draws: int = _DRAWS, counts: int = _COUNTS) -> Iterator[Check]:
    """T2: with no image, all that a round releases is noise; its energy is compared with the declared one.

    Guarantee of what passes: a standard deviation that is off by 5 sqrt(0.5 / draws) or more is found almost
    surely, in the whole and, with its own number of draws, in each tensor. Over all tensors the fourth moment
    is that of a normal, too: noise of another law, or without its tails, is found.

    Args:
        harness: The configuration.
        draws: How many normals are looked at.
        counts: How many noised counts of each kind.
    """
    images, plan = harness.images.without_training().without_held_out(), harness.plan
    size = sum(array.size for array in harness.start.values())
    rounds = [harness.noised_sum(harness.ask("train", images)) for _ in range(max(1, round(draws / size)))]
    # Stated once more, apart from the plan's own property: multiplier times clip bound, and the grid's share.
    declared = plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK) * np.sqrt(plan.steps_per_round)
    scaled = np.stack(rounds) / declared
    yield _energy("noise of all tensors", scaled)
    yield _shape("noise of all tensors", scaled)
    at = 0
    for name, array in harness.start.items():
        yield _energy(f"noise of {name}", scaled[:, at : at + array.size])
        at += array.size
    if plan.counts is not None:
        yield from _noise_of_counts(harness, counts)


def _noise_of_counts(harness: ClientHarness, counts: int) -> Iterator[Check]:
    plan, cells = harness.plan.counts, len(harness.classes) ** 2
    assert plan is not None  # noqa: S101 -- the caller has checked
    for name, per, closing, stddev in (
        ("the pair of counts", 2, False, plan.noise_stddev),
        ("the closing matrix", cells, True, plan.closing_noise_stddev),
    ):
        found = [harness.counts(closing=closing) for _ in range(max(1, round(counts / per)))]
        yield _energy(f"noise of {name}", np.concatenate(found) / stddev)


def _shape(name: str, scaled: np.ndarray) -> Check:
    """Fourth moment over the second one's square: 3 for normals, whatever their scale; Laplace has 6, uniform 1.8."""
    square = scaled.ravel() ** 2
    moment = float((square**2).mean() / square.mean() ** 2)
    fine = abs(moment - 3) <= 6 * np.sqrt(24 / square.size)
    return Check(
        f"{name} has the shape of a normal", bool(fine), f"fourth moment {moment:.3f} over {square.size} draws"
    )


def _energy(name: str, scaled: np.ndarray) -> Check:
    """Chi-square of values that should be independent standard normals, or nearly so."""
    energy, size = float((scaled**2).sum()), scaled.size
    chance = 2 * min(stats.chi2.sf(energy, size), stats.chi2.cdf(energy, size))
    factor = np.sqrt(energy / size)
    return Check(f"{name} has the declared scale", bool(chance > ALARM), f"{factor:.4f} of it over {size} draws")
