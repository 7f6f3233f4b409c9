"""T4: batches are Poisson samples at the declared rate, in all the steps that are charged."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import stats

from simulations.harness.client_harness import ClientHarness, Streams
from simulations.harness.harness_images import Images
from simulations.privacy_tests.check import Check

_ALARM = 1e-7
_UNITS = 24
_TINY_STEP = 1e-4


def sampler(harness: ClientHarness, *, rounds: int = 120) -> Iterator[Check]:
    """T4 for one configuration whose sample rate is below 1.

    Each unit gets a feature of its own, and noise is silenced: so the released weights tell how often each
    unit was in a batch. These counts must be Binomial(steps, q), independent over units.

    Args:
        harness: The configuration.
        rounds: Messages to look at.
    """
    rate, steps = harness.plan.sample_rate, harness.plan.steps_per_round
    counts = joined(harness, rounds=rounds)
    trials = counts.size * steps
    found = int(counts.sum())
    chance = stats.binomtest(found, trials, rate).pvalue
    yield Check("units join at the declared rate", bool(chance > _ALARM), f"{found / trials:.4f} for {rate:.4f}")
    one, total = steps * rate * (1 - rate), _UNITS * steps * rate * (1 - rate)
    yield _dispersion("how often one unit joins varies as a Poisson sample does", counts.ravel(), one)
    yield _dispersion("batch sizes vary as a Poisson sample's do", counts.sum(axis=1), total)
    yield Check("no unit joins a step twice", int(counts.max()) <= steps, f"{int(counts.max())} times in {steps} steps")
    yield _pairs(counts, one)
    yield from _steps_are_charged(harness)


def joined(harness: ClientHarness, *, rounds: int) -> np.ndarray:
    """(rounds, units) int64: how often each unit was in a batch, read off what was released without noise."""
    probe = _probe(harness)
    direction = -np.full(len(probe.classes), 1 / len(probe.classes))
    direction[0] += 1
    moved = _TINY_STEP * probe.plan.max_grad_norm / probe.plan.expected_batch_size
    rows = []
    for _ in range(rounds):
        seen = probe.ask("train", probe.images, streams=Streams.without_noise())
        (weight,) = seen.arrays.values()
        rows.append(weight[0] / (moved * direction[0] / np.linalg.norm(direction)))
    return np.asarray(np.rint(np.array(rows)), dtype=np.int64)


def _probe(harness: ClientHarness) -> ClientHarness:
    """A linear head on one long feature a unit, and steps so short that no gradient turns."""
    inputs = (np.eye(_UNITS) * 1e3).astype(np.float32)
    images = Images.of(inputs, np.zeros(_UNITS, dtype=np.int64), held_out=0)
    head = harness.with_settings(
        model={"tuning": None, "head": "linear", "backbone": "efficientnet_lite0", "personal": ""},
        training={"augmentation": "", "rotation_weight": 0.0},
    ).config
    training = head.training.model_copy(update={"learning_rate": _TINY_STEP})
    return replace(harness, images=images, config=head.model_copy(update={"training": training}))


def _dispersion(name: str, counts: np.ndarray, variance: float) -> Check:
    """Index of dispersion: sum of squares over the variance that independence implies, as a chi-square."""
    energy = float(((counts - counts.mean()) ** 2).sum()) / variance
    chance = 2 * min(stats.chi2.sf(energy, counts.size - 1), stats.chi2.cdf(energy, counts.size - 1))
    # Discrete counts are no normals; over hundreds of them the statistic is close to one.
    return Check(name, bool(chance > _ALARM), f"{energy / max(1, counts.size - 1):.3f} of the variance")


def _pairs(counts: np.ndarray, variance: float) -> Check:
    """Units must not exclude or attract each other: the mean correlation over all pairs."""
    centred = counts - counts.mean(axis=0)
    both = centred.T @ centred / (len(counts) * variance)
    mean = float(both[~np.eye(len(both), dtype=bool)].mean())
    pairs = len(both) * (len(both) - 1) / 2
    fine = abs(mean) <= 6 / np.sqrt(pairs * len(counts))
    return Check("units join independently of each other", bool(fine), f"mean correlation {mean:.5f}")


def _steps_are_charged(harness: ClientHarness) -> Iterator[Check]:
    """Every step draws noise and is charged, whether its batch is empty or not."""
    seen = harness.ask("train", harness.images.without_training(), streams=Streams.repeated())
    steps = harness.plan.event(1).steps
    for stream in ("sampling", "noise"):
        used = sum(draw.stream == stream for draw in seen.draws)
        yield Check(f"empty batches are steps, each drawing {stream}", used == steps, f"{used} uses, {steps} steps")
