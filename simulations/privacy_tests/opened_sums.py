"""Privacy tests T1 to T3 of secure sums with noise in shares.

The adversary is the server with all clients but t, who take their own parts out of the sum. What is left is the sum of
t honest clients, and it must have the noise and the epsilon that the run states.
"""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS
from common.privacy.noise import SecureStream
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_streams import ObservedStreams, RepeatedStreams
from simulations.harness.open_sums import OpenClient, sum_of
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.independence import uncorrelated
from simulations.privacy_tests.neighbouring_data import canaries
from simulations.privacy_tests.noise_scale import (
    coarsest_step,
    each_value_check,
    grid_checks,
    scale_check,
    shape_check,
)
from simulations.privacy_tests.opened_counts import opened_counts
from simulations.privacy_tests.opened_epsilon import epsilon_checks

_DRAWS, _COUNTS = 64_000, 2_000
_MOST_OF_THE_BOUND, _LONGEST_TRAINED = 0.9, 1000.0


def opened_replay(harness: ClientHarness) -> Iterator[Check]:
    """Check what one unit can change in a sum, under the same noise (T1).

    Guarantee of what passes: a canary that joins moves the sum by at most C (1 + 1e-4), its rounding included. Where
    whole clients are protected, a client without images moves it by no more, against one with each canary. Some canary
    comes near the bound.
    """
    layout, client, bound = OpenClient(harness).layout(), OpenClient(harness), harness.plan.max_grad_norm
    whole, images, reach = harness.config.mechanism.clips_clients, harness.images, 0.0
    for canary in canaries(images):
        # Training on such images diverges, as in any run without a clip for each image, and its update becomes zero.
        if whole and not np.abs(canary.inputs).max() <= _LONGEST_TRAINED:
            continue
        several = harness.config.privacy.unit == "group" or whole
        rows = slice(None) if several else slice(1)
        more = images.with_unit(canary.inputs[rows], canary.labels[rows])
        pair = (more, images.without_training() if whole else images)
        ours, theirs = (sum_of(layout, client.ask(each, streams=RepeatedStreams())) for each in pair)
        moved = float(np.linalg.norm(ours - theirs))
        reach = max(reach, moved / bound)
        fine = moved <= bound * (1 + SENSITIVITY_SLACK)
        yield Check(f"{canary.name} moves an opened sum by no more than C", fine, f"{moved:.6g} for {bound:.6g}")
    yield Check("some canary reaches the bound", reach > _MOST_OF_THE_BOUND, f"{reach:.3f} C")


def opened_noise(harness: ClientHarness, *, draws: int = _DRAWS, counts: int = _COUNTS) -> Iterator[Check]:
    """Check that t honest clients carry the whole noise (T2).

    Clients without images send noise alone, so the sum of t of them is what is left of all noise when the others take
    theirs out.

    Guarantee of what passes: the noise of a sum has the declared standard deviation, as `noise_scale` bounds it, in all
    values, in each tensor and in each value. Each client's share has its part of it, a normal's shape, and all values
    of a fine enough grid. So has each kind of counts. Epsilon by the measured noise, at
    its largest by chance, is not above the stated one, and the stated one is not below an independent accountant's or
    above the target.

    Args:
        harness: A configuration with noise in shares.
        draws: Number of normals to look at.
        counts: Number of noised counts of each kind.
    """
    plan, layout = harness.plan, OpenClient(harness).layout()
    # From the settings and not from the plan: a plan that says too few must not test itself.
    honest = harness.config.secure.honest if harness.config.secure is not None else 0
    clients = [OpenClient(harness, number) for number in range(honest)]
    nothing = harness.images.without_training().without_held_out()
    size = sum(harness.released.values())
    # Twice at least: one draw of a value is zero by chance, in ten million values.
    rounds = [[client.ask(nothing) for client in clients] for _ in range(max(2, round(draws / size)))]
    declared = plan.noise_multiplier * plan.max_grad_norm * (1 + SENSITIVITY_SLACK)
    scaled = np.stack([sum_of(layout, *answers) for answers in rounds]) / declared
    name = f"noise of {honest} honest clients"
    yield scale_check(name, scaled)
    yield each_value_check(name, scaled)
    ends = np.cumsum(list(harness.released.values()))
    for tensor, part in zip(harness.released, np.split(scaled, ends[:-1], axis=1), strict=True):
        yield scale_check(f"{name} in {tensor}", part)
    for number in range(honest):
        shares = np.stack([sum_of(layout, answers[number]) for answers in rounds])
        yield from _share_checks(f"the share of client {number + 1}", shares, declared / math.sqrt(honest), plan)
    yield from epsilon_checks(harness, honest, scaled)
    if plan.counts is not None:
        yield from opened_counts(harness, plan.counts, honest, counts)


def _share_checks(name: str, shares: np.ndarray, stddev: float, plan: PrivacyPlan) -> Iterator[Check]:
    """Check the noise that one client adds.

    A sum of few shares nearly has a normal's shape, whatever theirs is, so each is looked at apart.
    """
    yield scale_check(name, shares / stddev)
    yield each_value_check(name, shares / stddev)
    yield shape_check(name, shares / stddev)
    yield from grid_checks(name, shares, coarsest_step(plan.max_grad_norm, shares.shape[1], stddev))


def opened_independence(harness: ClientHarness) -> Iterator[Check]:
    """Check that no share of the noise is used twice (T3).

    Shares are compared between clients, runs and rounds. Each message draws from new secure streams.
    """
    layout, nothing = OpenClient(harness).layout(), harness.images.without_training().without_held_out()
    later, streams = min(2, harness.plan.num_rounds), ObservedStreams()
    noise = {
        "one client": OpenClient(harness).ask(nothing, streams=streams),
        "the same client again": OpenClient(harness).ask(nothing),
        "its next round": OpenClient(harness).ask(nothing, server_round=later, streams=streams),
        "another client": OpenClient(harness, 1).ask(nothing, streams=streams),
    }
    shares = {name: sum_of(layout, seen) for name, seen in noise.items()}
    yield from uncorrelated(shares, "noise of {} and of {}")
    equal = sum(np.array_equal(first, second) for first, second in combinations(shares.values(), 2))
    yield Check("no two shares are equal", equal == 0, f"{equal} of {len(shares)}")
    distinct = len({id(stream) for stream in streams.used})
    fine = distinct == len(streams.used) > 0 and all(type(stream) is SecureStream for stream in streams.used)
    yield Check("each message draws fresh keys, one a stream", fine, f"{distinct} streams in 3 messages")
    begins = {FRESH_STREAMS.for_training().noise.random_bytes(32) for _ in range(4)}
    yield Check("no two streams begin alike", len(begins) == 4, f"{len(begins)} of 4")
