"""Privacy test T4, of Poisson sampling at the declared rate in every charged step."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import stats

from common.config.sections import ALL_IMAGES
from common.privacy.batched_gradients import AUTO
from common.privacy.gaussian_table import TIE_BYTES, VALUES_AT_ONCE
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import RepeatedStreams, WithoutNoise
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.noise_scale import ALARM, chance_of_energy

_UNITS = 24
_TINY_STEP = 1e-4


def sampler(harness: ClientHarness, *, rounds: int = 120) -> Iterator[Check]:
    """Check that batches are Poisson samples (T4).

    Each unit has a feature of its own, and there is no noise. The released weights then show how often each unit was
    in a batch. These counts must be Binomial(steps, q) and independent between units.

    Args:
        harness: A configuration whose sample rate is below 1.
        rounds: Number of messages to look at.
    """
    rate, steps = harness.plan.sample_rate, harness.plan.steps_per_round
    counts = batch_counts(harness, rounds=rounds)
    trials, joined = counts.size * steps, int(counts.sum())
    chance = stats.binomtest(joined, trials, rate).pvalue
    yield Check("units join at the declared rate", bool(chance > ALARM), f"{joined / trials:.4f} for {rate:.4f}")
    one, total = steps * rate * (1 - rate), _UNITS * steps * rate * (1 - rate)
    yield _dispersion("how often one unit joins varies as a Poisson sample does", counts.ravel(), one)
    yield _dispersion("batch sizes vary as a Poisson sample's do", counts.sum(axis=1), total)
    yield Check("no unit joins a step twice", int(counts.max()) <= steps, f"{int(counts.max())} times in {steps} steps")
    yield _pairs(counts, one)
    yield from _steps_are_charged(harness)


def batch_counts(harness: ClientHarness, *, rounds: int) -> np.ndarray:
    """Count the batches of each round that each unit is in.

    Args:
        harness: The configuration.
        rounds: Number of messages.

    Returns:
        (rounds, units) int64, computed from what was released without noise.
    """
    probe = _probe(harness)
    direction = -np.full(len(probe.classes), 1 / len(probe.classes))
    direction[0] += 1
    moved = _TINY_STEP * probe.plan.max_grad_norm / probe.plan.expected_batch_size
    rows = []
    for _ in range(rounds):
        seen = probe.ask("train", probe.images, streams=WithoutNoise())
        (weight,) = seen.arrays.values()
        rows.append(weight[0] / (moved * direction[0] / np.linalg.norm(direction)))
    return np.asarray(np.rint(np.array(rows)), dtype=np.int64)


def _probe(harness: ClientHarness) -> ClientHarness:
    """Return the plan on a linear head, with one long feature a unit.

    Steps are so short that no gradient changes its direction.
    """
    inputs = (np.eye(_UNITS) * 1e3).astype(np.float32)
    images = Images.of(inputs, np.zeros(_UNITS, dtype=np.int64), held_out=0)
    head = harness.with_settings(
        model={"tuning": None, "head": "linear", "backbone": "efficientnet_lite0", "personal": ""},
        # An empty batch size means another one to a linear head than to the network that is tested.
        training={"augmentation": "", "rotation_weight": 0.0, "gradients": AUTO}
        | {"batch_size": harness.config.batch_size or ALL_IMAGES},
    ).config
    training = head.training.model_copy(update={"learning_rate": _TINY_STEP})
    return replace(harness, images=images, config=head.model_copy(update={"training": training}))


def _dispersion(name: str, counts: np.ndarray, variance: float) -> Check:
    """Check the index of dispersion by a chi-square test.

    Counts are not normal, but over hundreds of them the statistic is close to a chi-square.
    """
    energy = float(((counts - counts.mean()) ** 2).sum()) / variance
    fine = chance_of_energy(energy, counts.size - 1) > ALARM
    return Check(name, fine, f"{energy / max(1, counts.size - 1):.3f} of the variance")


def _pairs(counts: np.ndarray, variance: float) -> Check:
    """Check the mean correlation of all pairs of units."""
    centred = counts - counts.mean(axis=0)
    both = centred.T @ centred / (len(counts) * variance)
    mean = float(both[~np.eye(len(both), dtype=bool)].mean())
    pairs = len(both) * (len(both) - 1) / 2
    fine = abs(mean) <= 6 / np.sqrt(pairs * len(counts))
    return Check("units join independently of each other", bool(fine), f"mean correlation {mean:.5f}")


def _steps_are_charged(harness: ClientHarness) -> Iterator[Check]:
    """Check that a client without images makes every charged step."""
    seen = harness.ask("train", harness.images.without_training(), streams=RepeatedStreams())
    steps = harness.plan.event(1).steps
    # Noise is drawn in parts. A coin that ties asks for a few bytes more, which are no draw of their own.
    parts = -(-sum(array.size for array in harness.start.values()) // VALUES_AT_ONCE)
    for stream, each in (("sampling", 1), ("noise", parts)):
        used = sum(draw.stream == stream and draw.size != TIE_BYTES for draw in seen.draws) / each
        yield Check(f"empty batches are steps, each drawing {stream}", used == steps, f"{used:g} uses, {steps} steps")
