"""Privacy test T3, of noise or batches that are used twice."""

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS
from common.privacy.noise import SecureStream
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_streams import ObservedStreams
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.sampling import batch_counts

_SIGMAS = 6.0
_MIN_SIZE = 64
_KEY_BYTES = 32


def independence(harness: ClientHarness, *, processes: bool = True) -> Iterator[Check]:
    """Check that no noise and no batch is used twice (T3).

    Noise is compared between steps, rounds, clients, processes and tensors.

    Args:
        harness: The configuration.
        processes: Also fork two clients, where the system can. A copied process must not repeat noise.
    """
    noise = {
        "the same round": _noise(harness),
        "the same round again": _noise(harness),
        "the next round": _noise(harness, server_round=_next_round(harness)),
        "another client": _noise(harness, name="another"),
    }
    if processes and sys.platform == "linux":
        noise |= {f"forked process {number}": each for number, each in enumerate(_forked(harness))}
    yield from uncorrelated(noise, "noise of {} and of {}")
    yield from uncorrelated(_tensors(harness, noise["the same round"]), "noise of {} and of {} in one message")
    yield from _steps(harness)
    yield from _batches(harness)
    yield from _keys(harness)


def _noise(harness: ClientHarness, *, server_round: int = 1, name: str = "bench") -> np.ndarray:
    images = harness.images.without_training().without_held_out()
    return harness.noised_sum(harness.ask("train", images, server_round=server_round, name=name))


def _next_round(harness: ClientHarness) -> int:
    """Return the number of the round after the first.

    Where a plan has one round, the first round of another run takes its place.
    """
    return min(2, harness.plan.num_rounds)


def _forked(harness: ClientHarness) -> list[np.ndarray]:
    """Return the noise of two processes that start as copies of this one."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=lambda out=out: out.send_bytes(_noise(harness).tobytes())) for _, out in pipes]
    for worker in workers:
        worker.start()
    noise = [np.frombuffer(inward.recv_bytes()) for inward, _ in pipes]
    for worker in workers:
        worker.join()
    return noise


def _tensors(harness: ClientHarness, noise: np.ndarray) -> dict[str, np.ndarray]:
    parts, offset = {}, 0
    for name, size in harness.released.items():
        parts[name] = noise[offset : offset + size]
        offset += size
    return parts


def uncorrelated(noise: Mapping[str, np.ndarray], naming: str) -> Iterator[Check]:
    """Check that no two of some noises are correlated.

    Args:
        noise: Name -> values.
        naming: Name of a check, with a place for each of the two names.
    """
    for (first, a), (second, b) in combinations(noise.items(), 2):
        size = min(len(a), len(b))
        # Few values are correlated by chance.
        if size < _MIN_SIZE:
            continue
        correlation = float(np.corrcoef(a[:size], b[:size])[0, 1])
        fine = abs(correlation) <= _SIGMAS / np.sqrt(size)
        yield Check(f"{naming.format(first, second)} are independent", bool(fine), f"correlation {correlation:.4f}")


def _steps(harness: ClientHarness) -> Iterator[Check]:
    """Check the energy of a round's noise.

    Equal noise in all T steps would have T times the energy of independent noise.
    """
    steps = harness.plan.steps_per_round
    if steps == 1:
        harness = harness.with_settings(local_epochs=4)
        steps = harness.plan.steps_per_round
    ratio = float(_noise(harness).var()) / (steps * harness.plan.noise_stddev**2)
    yield Check(f"noise of {steps} steps adds up as independent noise does", ratio < 1.5, f"{ratio:.3f} of it")


def _batches(harness: ClientHarness) -> Iterator[Check]:
    """Check that two messages of one round draw different batches.

    A sampling stream that was restored would draw the same ones.
    """
    if harness.plan.sample_rate == 1.0:
        return
    first, second = (batch_counts(harness, rounds=1).ravel() for _ in range(2))
    yield Check("a round that is asked for again draws new batches", not np.array_equal(first, second))


def _keys(harness: ClientHarness) -> Iterator[Check]:
    """Check that each message has new secure streams for sampling, noise and counts.

    A stream keeps its key secret. Two streams under one key would begin with the same bytes.
    """
    streams = ObservedStreams()
    for server_round in (1, _next_round(harness)):
        harness.ask("train", harness.images, server_round=server_round, streams=streams)
    expected = 2 * (2 + (harness.plan.counts is not None) + len(harness.plan.label_events()))
    if harness.plan.counts is not None:
        # The matrix and each kind of histogram are releases of their own.
        harness.ask("evaluate", harness.images, streams=streams)
        expected += len(harness.plan.counts.closing_events())
    distinct = len({id(stream) for stream in streams.used})
    secure = all(type(stream) is SecureStream for stream in streams.used)
    fine = secure and distinct == len(streams.used) == expected
    yield Check("each message draws fresh keys, one a stream", fine, f"{distinct} streams in the messages")
    pairs = [FRESH_STREAMS.for_training() for _ in range(2)]
    fresh = [stream for pair in pairs for stream in (pair.sampling, pair.noise) if isinstance(stream, SecureStream)]
    begins = {stream.random_bytes(_KEY_BYTES) for stream in fresh}
    yield Check("no two streams begin alike", len(begins) == 2 * len(pairs), f"{len(begins)} of {2 * len(pairs)}")
