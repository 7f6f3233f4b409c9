"""Networks under `dp-sgd` and a secure sum: one clipped gradient sum a round, and steps of the server.

Drives `client.training.network_sgd`, `client.training.trainer`, `server.rounds.secure_rounds`.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bract
import client.training.network_sgd as network_training
from client.training.gradients.per_example_gradients import gradients_one_by_one
from client.training.network_sgd import TrainingSet, network_gradient_sum, train_network_privately
from client.training.round_settings import LocalSettings
from common.errors import ConfigError, PrivacyError
from common.models.classifier import load_arrays
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan
from common.secagg.noise_shares import gradient_scale, share_words, values_of_sum
from server.aggregation.summed_steps import SummedSteps
from server.audit.audit import audit_run
from tests.simulations.test_noise_in_shares import (  # noqa: F401
    CLIENTS,
    HONEST,
    NOISE,
    SETTINGS,
    Opened,
    Silent,
    images_fixture,
)
from tests.support.clients.networks import cnn, flat, repeating, rows_of, start

BOUND = 0.05
PLAN = PrivacyPlan("dp-sgd", "image", 12, 1.0, 1, 3, BOUND, 5.0, 1e-5, noise_shares=HONEST)
LOCAL = LocalSettings(1.0, 0.0, 1, None)


def subset(rows: slice, units: np.ndarray | None = None) -> TrainingSet:
    whole = rows_of(20)
    return TrainingSet(whole.images[rows], whole.labels[rows], whole.digests[rows], units)


def gradient(rows: TrainingSet, plan: PrivacyPlan = PLAN) -> np.ndarray:
    return network_gradient_sum(cnn(), start(), rows, plan, LOCAL)


@pytest.mark.parametrize("grouped", [False, True])
def test_one_unit_more_moves_a_clients_words_by_no_more_than_the_clip_bound(grouped: bool) -> None:
    """T1 on the real client step, up to the whole numbers before the masks."""
    units = np.arange(12) // 3 if grouped else np.arange(12)
    stay = 9 if grouped else 11
    sums = [gradient(subset(slice(0, stop), units[:stop])) for stop in (stay, 12)]
    scale = gradient_scale(PLAN, sums[0].size, total_units=60, num_clients=CLIENTS)

    words = [share_words(one, scale, num_units=12, stream=Silent()) for one in sums]

    moved = float(np.linalg.norm(values_of_sum(words[1] - words[0], scale)))
    assert 0.5 * BOUND < moved <= BOUND * (1 + SENSITIVITY_SLACK)


def test_the_sum_is_of_each_images_gradient_clipped_by_itself() -> None:
    network, rows = cnn(), subset(slice(0, 6))
    load_arrays(network, start())
    expected = np.zeros(flat(start()).size)
    for one in gradients_one_by_one(network, rows.batch(network, np.arange(6), LOCAL, step=0), LOCAL):
        wide = one.astype(np.float64)
        expected += wide * min(1.0, BOUND / np.linalg.norm(wide))

    # Images share calls of layers, so the last bits of float32 differ.
    assert gradient(rows) == pytest.approx(expected, abs=1e-6)


def test_two_clients_and_the_server_make_the_step_of_one_that_holds_all_images() -> None:
    scale = gradient_scale(PLAN, flat(start()).size, total_units=20, num_clients=2)
    parts = [gradient(subset(rows)) for rows in (slice(0, 12), slice(12, 20))]
    words = [np.rint(part / scale.step).astype(np.int64).view(np.uint64) for part in parts]
    steps = SummedSteps(PLAN, total_units=20, num_clients=2, rule=2, rate=0.7)

    found = steps.step(start(), words[0] + words[1], replace(scale, bits=64), num_units=20)

    quiet = replace(PLAN, num_units=20, noise_multiplier=1e-9, noise_shares=0)
    alone = train_network_privately(
        cnn(), start(), subset(slice(0, 20)), quiet, replace(LOCAL, learning_rate=0.7), repeating()
    )
    assert list(found) == list(alone)
    assert flat(found) == pytest.approx(flat(alone), abs=1e-6)
    assert np.abs(flat(found) - flat(start())).max() > 1e-3


@pytest.mark.parametrize("changes", [{"noise_shares": 0}, {"sample_rate": 0.5}, {"steps_per_round": 2}], ids=str)
def test_a_gradient_sum_is_refused_under_another_plan(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="under a plan that has none"):
        gradient(subset(slice(0, 2)), replace(PLAN, **changes))


def test_a_run_opens_sums_with_the_noise_of_all_shares_and_is_verified(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients with zero gradients: what is opened is noise alone."""
    opened, real = Opened(), network_training.network_gradient_sum
    monkeypatch.setattr(network_training, "network_gradient_sum", lambda *args: 0.0 * real(*args))
    monkeypatch.setattr(SummedSteps, "step", opened.step(SummedSteps.step))
    of_cnn = {"model.backbone": "cnn", "num-rounds": 2, "data.image-size": 16, "data.source": str(images)}

    bract.simulate(SETTINGS | of_cnn, out=tmp_path / "run", quiet=True)

    noise = np.stack(opened)
    declared = NOISE * 1.0 * (1 + SENSITIVITY_SLACK) * math.sqrt(CLIENTS / HONEST)
    energy = float((noise**2).sum()) / declared**2
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    assert abs(np.corrcoef(noise)[0, 1]) < 6 / math.sqrt(noise.shape[1])
    stated = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (stated["noise_shares"], stated["max_grad_norm"]) == (HONEST, 1.0)
    assert (audit_run(tmp_path / "run").verdict, audit_run(tmp_path / "run").remarks.doubts) == ("verified", [])


def test_local_batches_of_a_network_are_refused(images: Path) -> None:
    settings = SETTINGS | {"data.source": str(images), "model.backbone": "cnn", "training.batch-size": 8}

    with pytest.raises(ConfigError, match=r"training\.batch-size does not go with privacy\.aggregation='secure'"):
        bract.simulate(settings, quiet=True)
