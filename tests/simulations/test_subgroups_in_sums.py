"""Counts by subgroup in a secure sum: their noise in shares, what is charged, and what the run states.

Drives `common.messages.counts_in_sums`, `common.messages.secure_words`, `client.evaluation.evaluate`,
`server.reporting.counts_file`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bract
from common.config.loading import defaults, override, parse
from common.errors import PrivacyError
from common.messages.codec import Evaluation
from common.messages.fields import Releases
from common.messages.secure_words import SecureWords
from common.metrics import Counts, NoisedCounts
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.noise import SecureStream
from common.subgroup_counts import SubgroupCounts
from server.audit.audit import audit_run
from tests.simulations.test_noise_in_shares import CLIENTS, HONEST, SETTINGS
from tests.support.data.divided_table import BY_SEX, write_divided
from tests.support.secagg.ring_sums import ring_sum

EXACT: dict[str, Any] = {
    "privacy.mechanism": "none",
    "privacy.noise-multiplier": "",
    "privacy.counts-noise": "",
    "privacy.closing-noise": "",
}
CELLS = np.array([[5, 1], [0, 0], [7, 2]])


def words_of(more: dict[str, Any]) -> SecureWords:
    named: dict[str, Any] = {"round-retries": 0, "data.classes": "a,b"}
    config = parse(override(defaults(), SETTINGS | BY_SEX | named | more))
    sizes = {f"ward-{number}": 10 for number in range(CLIENTS)}
    plan = config.plan(10) if config.is_local_dp else None
    return SecureWords({HEAD_WEIGHT: (2, 4)}, 2, Releases.of(config), sizes, CLIENTS, plan)


def test_each_subgroup_has_the_noise_of_all_shares_an_empty_one_too() -> None:
    """Shares for n and not t would be 0.77 of it, a client without noise 0.89."""
    words, found = words_of({}), list[np.ndarray]()
    closing = Evaluation(noised=NoisedCounts(np.array([[8, 2], [1, 4]])), subgroups=SubgroupCounts(CELLS))
    assert words.plan is not None
    assert words.plan.counts is not None

    for _ in range(300):
        vectors = [
            words.encode_counts(closing, server_round=None, name=name, stream=SecureStream()) for name in words.sizes
        ]
        summed = words.summed_counts(ring_sum(vectors, words.ring.word_bits), CLIENTS, server_round=None)
        assert summed is not None
        assert summed.subgroups is not None
        assert summed.subgroups.num_clients == CLIENTS
        found.append(summed.subgroups.cells)

    noise = np.stack(found) - CLIENTS * CELLS
    declared = (words.plan.counts.subgroups_noise_stddev or 0.0) * math.sqrt(CLIENTS / HONEST)
    energies = (noise**2).sum(axis=0).ravel() / declared**2
    chances = 2 * np.minimum(stats.chi2.sf(energies, len(noise)), stats.chi2.cdf(energies, len(noise)))
    assert (chances > 1e-7).all()
    # All together, because one cell alone would not always show a share that is too small.
    assert 2 * min(stats.chi2.sf(energies.sum(), noise.size), stats.chi2.cdf(energies.sum(), noise.size)) > 1e-7
    assert len(vectors[0]) == words.lengths(2)[-1] == 4 + CELLS.size
    with pytest.raises(PrivacyError, match="only with the noise of the plan"):
        words.encode_counts(closing, server_round=None, name="ward-1")


def test_exact_subgroups_are_summed_as_they_are() -> None:
    words = words_of(EXACT)
    closing = Evaluation(Counts(np.array([[8, 1], [2, 4]]), 1.0), subgroups=SubgroupCounts(CELLS))

    vectors = [words.encode_counts(closing, server_round=None, name="ward-1") for _ in range(3)]
    summed = words.summed_counts(ring_sum(vectors, words.ring.word_bits), 3, server_round=None)

    assert summed is not None
    assert summed.subgroups is not None
    assert (summed.subgroups.cells == 3 * CELLS).all()


@pytest.mark.parametrize("more", [{}, EXACT], ids=["dp-sgd", "none"])
def test_a_run_sums_subgroups_and_its_statement_is_verified(tmp_path: Path, more: dict[str, Any]) -> None:
    table = write_divided(tmp_path / "scans", 100)
    settings = SETTINGS | BY_SEX | more | {"data.source": str(table), "num-rounds": 2}

    bract.simulate(settings, out=tmp_path / "run", quiet=True)

    counts = json.loads((tmp_path / "run" / "counts.json").read_text())
    found = counts["subgroups"]
    stated = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (found["num_clients"], found["noised"], list(found["subgroups"])) == (CLIENTS, not more, ["f", "m", "other"])
    verdict = "NOT PRIVATE" if more else "verified"
    assert (audit_run(tmp_path / "run").verdict, audit_run(tmp_path / "run").remarks.doubts) == (verdict, [])
    if more:
        assert sum(one["right"] + one["wrong"] for one in found["subgroups"].values()) == np.sum(
            counts["exact"]["confusion"]
        )
        return
    whole = stated["metrics"]["subgroups_noise_stddev"]
    # Each client's part, as the interval is of the noise of all of them.
    assert found["noise_stddev"] == pytest.approx(whole / math.sqrt(HONEST))
    charged = [client["events"]["evaluation"][-1] for client in stated["clients"].values()]
    assert {(event["noise-stddev"], event["noise-shares"]) for event in charged} == {(whole, HONEST)}
