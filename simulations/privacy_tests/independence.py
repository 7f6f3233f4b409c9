"""T3: no noise and no batch is used twice: between steps, rounds, clients, processes, tensors, or after a resume."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations
from unittest.mock import patch

import numpy as np

import common.privacy.noise as noise_module
from common.arrays import Arrays
from simulations.harness.client_harness import ClientHarness, Streams
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.sampling import joined

_SIGMAS = 6.0
_FEWEST = 64


def independence(harness: ClientHarness, *, processes: bool = True) -> Iterator[Check]:
    """T3 for one configuration.

    Args:
        harness: The configuration.
        processes: Also fork two clients, where the system can: a copied process must not repeat noise.
    """
    found = {
        "the same round": _noise(harness),
        "the same round again": _noise(harness),
        "the next round": _noise(harness, server_round=2),
        "another client": _noise(harness, name="another"),
    }
    if processes and sys.platform == "linux":
        found |= {f"forked process {number}": each for number, each in enumerate(_forked(harness))}
    yield from _uncorrelated(found, "noise of {} and of {}")
    yield from _uncorrelated(_tensors(harness, found["the same round"]), "noise of {} and of {} in one message")
    yield from _steps(harness)
    yield from _batches(harness)
    yield from _keys(harness)


def _noise(harness: ClientHarness, *, server_round: int = 1, name: str = "bench") -> np.ndarray:
    images = harness.images.without_training().without_held_out()
    return harness.noised_sum(harness.ask("train", images, server_round=server_round, name=name))


def _forked(harness: ClientHarness) -> list[np.ndarray]:
    """Noise of two processes that begin as copies of this one."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=lambda out=out: out.send_bytes(_noise(harness).tobytes())) for _, out in pipes]
    for worker in workers:
        worker.start()
    found = [np.frombuffer(inward.recv_bytes()) for inward, _ in pipes]
    for worker in workers:
        worker.join()
    return found


def _tensors(harness: ClientHarness, noise: np.ndarray) -> Arrays:
    parts, at = {}, 0
    for name, array in harness.start.items():
        parts[name] = noise[at : at + array.size]
        at += array.size
    return parts


def _uncorrelated(found: Mapping[str, np.ndarray], naming: str) -> Iterator[Check]:
    for (one, a), (other, b) in combinations(found.items(), 2):
        size = min(len(a), len(b))
        if size < _FEWEST:
            continue
        correlation = float(np.corrcoef(a[:size], b[:size])[0, 1])
        fine = abs(correlation) <= _SIGMAS / np.sqrt(size)
        yield Check(f"{naming.format(one, other)} are independent", bool(fine), f"correlation {correlation:.4f}")


def _steps(harness: ClientHarness) -> Iterator[Check]:
    """Equal noise in all T steps of a round would have T times the energy of independent noise."""
    steps = harness.plan.steps_per_round
    if steps == 1:
        harness = harness.with_settings(local_epochs=4)
        steps = harness.plan.steps_per_round
    ratio = float(_noise(harness).var()) / (steps * harness.plan.noise_stddev**2)
    yield Check(f"noise of {steps} steps adds up as independent noise does", ratio < 1.5, f"{ratio:.3f} of it")


def _batches(harness: ClientHarness) -> Iterator[Check]:
    """Two messages of one round draw batches of their own: a stream that came back would draw the same."""
    if harness.plan.sample_rate == 1.0:
        return
    first, second = (joined(harness, rounds=1).ravel() for _ in range(2))
    yield Check("a round that is asked for again draws new batches", not np.array_equal(first, second))


def _keys(harness: ClientHarness) -> Iterator[Check]:
    """Sampling, noise and counts each take a fresh key from the operating system in each message."""
    keys: list[bytes] = []

    def urandom(size: int) -> bytes:
        keys.append(os.urandom(size))
        return keys[-1]

    expected = 2 + (harness.plan.counts is not None)
    with patch.object(noise_module, "os", type("Os", (), {"urandom": staticmethod(urandom)})):
        for server_round in (1, 2):
            harness.ask("train", harness.images, server_round=server_round, streams=Streams())
    fine = len(keys) == len(set(keys)) == 2 * expected and all(len(key) == 32 for key in keys)
    yield Check("each message draws fresh 256-bit keys, one a stream", fine, f"{len(keys)} keys in two messages")
