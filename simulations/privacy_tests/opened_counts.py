"""Privacy test T2 of each kind of counts in secure sums."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from client.evaluation.evaluate import evaluate_incoming
from common.messages.counts_in_sums import num_counts
from common.messages.fields import (
    CORRECT,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NOISED_SUBGROUP_COUNTS,
    WRONG,
)
from common.privacy.counts.counts_plan import CountsPlan
from common.secagg.primitives.ring import Words
from simulations.harness.client_harness import ClientHarness
from simulations.harness.open_sums import OpenClient
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.noise_scale import coarsest_step, grid_checks, scale_check, shape_check

_NAMES: Mapping[str, str] = {
    CORRECT: "a round's count of right answers",
    WRONG: "a round's count of wrong answers",
    NOISED_CONFUSION: "the closing matrix",
    NOISED_SCORE_COUNTS: "the score histograms",
    NOISED_CONFIDENCE_COUNTS: "the confidence histogram",
    NOISED_SUBGROUP_COUNTS: "the counts by subgroup",
}


def opened_counts(harness: ClientHarness, counts: CountsPlan, honest: int, number: int) -> Iterator[Check]:
    """Check the noise of each kind of counts in the sums of honest clients.

    Args:
        harness: A configuration with noise in shares.
        counts: Noise of the counts.
        honest: Number of clients that are honest.
        number: Least number of noised counts of each kind.
    """
    # As plans declare it and not by the code that noises sums, which must not test itself.
    declared: dict[str, float | None] = {
        CORRECT: counts.noise_stddev,
        WRONG: counts.noise_stddev,
        NOISED_CONFUSION: counts.closing_noise_stddev,
        NOISED_SCORE_COUNTS: counts.scores_noise_stddev,
        NOISED_CONFIDENCE_COUNTS: counts.calibration_noise_stddev,
        NOISED_SUBGROUP_COUNTS: counts.subgroups_noise_stddev,
    }
    kinds = {key: stddev for key, stddev in declared.items() if stddev is not None}
    found = {key: noise for closing in (False, True) for key, noise in _noise(harness, honest, number, closing).items()}
    yield Check("counts in sums are those of the plan", set(found) == set(kinds), ", ".join(sorted(found)))
    for key, shares in found.items():
        name, stddev = f"noise of {honest} honest clients in {_NAMES.get(key, key)}", kinds.get(key, math.nan)
        yield scale_check(name, shares.sum(axis=0) / stddev)
        # A sum of few shares nearly has a normal's shape, whatever theirs is.
        name, share = f"each share in {_NAMES.get(key, key)}", stddev / math.sqrt(honest)
        yield shape_check(name, shares / share)
        # The largest step of which whole counts are multiples, too.
        yield from grid_checks(name, shares, min(1.0, coarsest_step(math.inf, 1, share)))


def _noise(harness: ClientHarness, honest: int, number: int, closing: bool) -> dict[str, np.ndarray]:
    """Return the counts of no images, of each client apart.

    Each kind is (honest, draws), float64. No message is sent, because two thousand of them would take minutes.
    """
    clients = [OpenClient(harness, client) for client in range(honest)]
    layout, nothing = clients[0].layout(), harness.images.without_training().without_held_out()
    sessions = [client.session(nothing) for client in clients]
    evaluation = evaluate_incoming(sessions[0], harness.start, {}, harness.plan, closing=closing)
    sizes = {
        key: num_counts(key, layout.num_classes, layout.releases.subgroups)
        for key in layout.releases.summed(closing=closing)
    }

    def drawn() -> Words:
        parts = [
            layout.encode_counts(
                evaluation,
                server_round=None if closing else 1,
                name=session.name,
                stream=session.streams.for_counts(),
            )
            for session in sessions
        ]
        return np.stack(parts)

    draws = round(number / min(sizes.values()))
    words = np.stack([drawn() for _ in range(max(1, draws))], axis=1)
    ends = np.cumsum(list(sizes.values()))
    parts = np.split(words, ends[:-1], axis=2)
    return {key: layout.noised_counts(key, part).reshape(honest, -1) for key, part in zip(sizes, parts, strict=True)}
