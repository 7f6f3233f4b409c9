"""The gates T1 to T6 and T8: the real client, attacked through real messages, in every way of tuning.

Drives `simulations.harness.client_harness`, `simulations.harness.harness_streams`,
`simulations.harness.released_sums`,
`simulations.privacy_tests.accounting`, `simulations.privacy_tests.check`,
`simulations.privacy_tests.fault_injection`, `simulations.privacy_tests.independence`,
`simulations.privacy_tests.neighbouring_data`, `simulations.privacy_tests.noise_scale`,
`simulations.privacy_tests.released_fields`, `simulations.privacy_tests.sampling`.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from common.config.loading import Scalar
from simulations.privacy_tests.check import run_privacy_test
from simulations.privacy_tests.independence import independence
from simulations.privacy_tests.neighbouring_data import amplified_replay, neighbour_replay
from simulations.privacy_tests.noise_scale import noise_scale
from simulations.privacy_tests.released_fields import release_surface
from simulations.privacy_tests.sampling import batch_counts
from tests.support.simulations.harness import CLIENT_DP, MODES, harness_of, said

pytestmark = pytest.mark.numerical
BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}
SURFACES: dict[str, dict[str, Scalar]] = {
    "dp-sgd, no counts": {"privacy.metrics": "none"},
    "dp-sgd, exact counts": {"privacy.metrics": "exact"},
    "dp-statistics, class means": {"privacy.mechanism": "dp-statistics", "training.statistics": "class-means"},
    "statistics without noise": {"privacy.mechanism": "none", "training.method": "statistics"},
    "client-dp": CLIENT_DP,
    "client-dp, exact counts": CLIENT_DP | {"privacy.metrics": "exact"},
    "dp-sgd, gradients in batches": MODES["cnn"] | {"training.gradients": "opacus"},
    "dp-sgd, by subgroup": BY_SEX,
    "no mechanism, by subgroup": BY_SEX | {"privacy.mechanism": "none"},
    "no mechanism": {"privacy.mechanism": "none"},
    "no mechanism, no counts": {"privacy.mechanism": "none", "privacy.metrics": "none"},
}


@pytest.mark.parametrize("mode", MODES)
def test_one_unit_moves_what_is_released_by_the_clip_bound_and_nothing_else(tmp_path: Path, mode: str) -> None:
    harness = harness_of(tmp_path, MODES[mode])

    report = run_privacy_test("T1", lambda: neighbour_replay(harness))

    assert report.holds, said(report)


NETWORKS = [mode for mode in MODES if not mode.startswith(("sums", "head"))]


@pytest.mark.parametrize("mode", NETWORKS)
def test_one_unit_changes_no_other_units_gradient_under_weights_that_multiply_rounding(
    tmp_path: Path, mode: str
) -> None:
    report = run_privacy_test("T1", lambda: amplified_replay(harness_of(tmp_path, MODES[mode])))

    assert report.holds, said(report)


@pytest.mark.parametrize("mode", ["cnn", "norm", "mlp head"])
def test_gradients_in_batches_are_found_under_such_weights_and_the_report_says_why(tmp_path: Path, mode: str) -> None:
    harness = harness_of(tmp_path, MODES[mode] | {"training.gradients": "opacus"})

    plain = run_privacy_test("T1", lambda: neighbour_replay(harness))
    amplified = run_privacy_test("T1", lambda: amplified_replay(harness))

    assert plain.holds, said(plain)
    assert not amplified.holds
    assert all("no epsilon covers what their rounding shows" in check.seen for check in amplified.failed)


def test_every_unit_in_every_step_is_replayed_with_batches_that_can_be_chosen(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, MODES["cnn"] | {"training.batch-size": "all"}).with_settings()
    assert harness.plan.sample_rate == 1

    report = run_privacy_test("T1", lambda: amplified_replay(harness))

    assert report.holds, said(report)


def test_sampling_is_tested_at_the_rate_of_a_network_whose_batch_size_is_left_empty(tmp_path: Path) -> None:
    """A linear head with an empty batch size takes every image in every step, and the test of sampling is on a head."""
    harness = harness_of(tmp_path, MODES["cnn"] | {"training.batch-size": ""})
    harness = replace(harness, num_units=200).with_settings()
    assert harness.plan.sample_rate < 1

    counts = batch_counts(harness, rounds=4)

    assert 0 < counts.mean() < harness.plan.steps_per_round
    assert counts.var() > 0


@pytest.mark.parametrize("mode", MODES)
def test_noise_has_the_declared_scale_in_every_tensor_and_is_never_used_twice(tmp_path: Path, mode: str) -> None:
    harness = harness_of(tmp_path, MODES[mode])

    for report in (
        run_privacy_test("T2", lambda: noise_scale(harness, draws=12_000, counts=0)),
        run_privacy_test("T3", lambda: independence(harness, processes=False)),
    ):
        assert report.holds, said(report)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_what_is_declared_leaves(tmp_path: Path, mode: str) -> None:
    harness = harness_of(tmp_path, MODES[mode])

    report = run_privacy_test("T6", lambda: release_surface(harness))

    assert report.holds, said(report)


@pytest.mark.parametrize("surface", SURFACES)
def test_nothing_but_what_is_declared_leaves_under_any_mechanism(tmp_path: Path, surface: str) -> None:
    harness = harness_of(tmp_path, SURFACES[surface])

    report = run_privacy_test("T6", lambda: release_surface(harness))

    assert report.holds, said(report)
