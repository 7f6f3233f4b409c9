"""Privacy test T2, of the noise's scale and shape in each tensor and count."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from common.privacy.plan import SENSITIVITY_SLACK
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import Check

# Chance of a false alarm of each check.
ALARM = 1e-7
_DRAWS = 64_000
_COUNTS = 2_000


def noise_scale(harness: ClientHarness, *, draws: int = _DRAWS, counts: int = _COUNTS) -> Iterator[Check]:
    """Check that the noise has the declared scale and a normal's shape (T2).

    A client without images releases noise alone. Its energy is compared with the declared one.

    Guarantee of what passes: a standard deviation that is off by a factor of 1 + 5 sqrt(0.5 / draws) or more is
    detected almost surely, over all tensors and, with its own number of draws, in each tensor. Over all tensors the
    fourth moment is that of a normal, so noise of another distribution, or without its tails, is detected too.

    Args:
        harness: The configuration.
        draws: Number of normals to look at.
        counts: Number of noised counts of each kind.
    """
    images, plan = harness.images.without_training().without_held_out(), harness.plan
    size = sum(array.size for array in harness.start.values())
    rounds = [harness.noised_sum(harness.ask("train", images)) for _ in range(max(1, round(draws / size)))]
    # Computed here and not read from the plan: a wrong `plan.noise_stddev` must not test itself.
    declared = plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK) * np.sqrt(plan.steps_per_round)
    scaled = np.stack(rounds) / declared
    yield scale_check("noise of all tensors", scaled)
    yield _shape_check("noise of all tensors", scaled)
    offset = 0
    for name, array in harness.start.items():
        yield scale_check(f"noise of {name}", scaled[:, offset : offset + array.size])
        offset += array.size
    if plan.counts is None:
        return
    for name, cells, closing, stddev in (
        ("the pair of counts", 2, False, plan.counts.noise_stddev),
        ("the closing matrix", len(harness.classes) ** 2, True, plan.counts.closing_noise_stddev),
    ):
        noise = [harness.counts(closing=closing) for _ in range(max(1, round(counts / cells)))]
        yield scale_check(f"noise of {name}", np.concatenate(noise) / stddev)


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


def _shape_check(name: str, scaled: np.ndarray) -> Check:
    """Check the ratio of the fourth moment to the squared second moment.

    It is 3 for normals of any scale, 6 for Laplace noise and 1.8 for uniform noise.
    """
    square = scaled.ravel() ** 2
    moment = float((square**2).mean() / square.mean() ** 2)
    fine = abs(moment - 3) <= 6 * np.sqrt(24 / square.size)
    return Check(
        f"{name} has the shape of a normal", bool(fine), f"fourth moment {moment:.3f} over {square.size} draws"
    )
