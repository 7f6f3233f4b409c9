"""T1 to T3 of what a server reads in secure sums with noise in shares, and faults that they must find.

Drives `simulations.harness.open_sums`, `simulations.privacy_tests.opened_sums`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.training import dp_sgd
from common.config.loading import Scalar
from common.secagg import noise_shares
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import PrivacyTestReport, run_privacy_test
from simulations.privacy_tests.opened_sums import opened_independence, opened_noise, opened_replay
from simulations.privacy_tests.suite import privacy_tests_of
from tests.support.simulations.harness import harness_of

pytestmark = pytest.mark.numerical
# Eight clients of which five are honest: with shares for all eight, five have 0.79 of the noise.
SECURE: dict[str, Scalar] = {
    "num-clients": 8,
    "round-retries": 0,
    "training.batch-size": "",
    "privacy.aggregation": "secure",
    "privacy.secure-honest": 5,
    "privacy.counts-noise": 20.0,
    "privacy.closing-noise": 4.0,
}
KINDS: dict[str, dict[str, Scalar]] = {
    "gradients": {},
    "gradients of groups": {"privacy.unit": "group"},
    "statistics": {"privacy.mechanism": "dp-statistics"},
    "whole clients": {"privacy.mechanism": "client-dp", "privacy.clipping-norm": 0.5, "privacy.metrics": "none"},
}


def harness(folder: Path, kind: str = "gradients") -> ClientHarness:
    return harness_of(folder, SECURE | KINDS[kind])


def noise(bench: ClientHarness) -> PrivacyTestReport:
    return run_privacy_test("T2", lambda: opened_noise(bench, draws=4_000, counts=600))


def said(report: PrivacyTestReport) -> str:
    return "\n".join(f"{report.test}: {check.name}: {check.seen}" for check in report.failed) or report.test


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("gradients of groups", "statistics"))) for kind in KINDS],
)
def test_a_sum_of_honest_clients_keeps_bound_noise_and_epsilon(tmp_path: Path, kind: str) -> None:
    bench = harness(tmp_path, kind)

    assert list(privacy_tests_of(bench)) == ["T1", "T2", "T3"]
    for report in (
        run_privacy_test("T1", lambda: opened_replay(bench)),
        noise(bench),
        run_privacy_test("T3", lambda: opened_independence(bench)),
    ):
        assert report.holds, said(report)
        assert report.checks


def shares_for_all(noise_stddev: float, noise_shares: int) -> float:
    return noise_stddev / math.sqrt(8 if noise_shares == 5 else noise_shares)


def a_tenth_less(noise_stddev: float, noise_shares: int) -> float:
    return 0.9 * noise_stddev / math.sqrt(noise_shares)


@pytest.mark.parametrize("share", [shares_for_all, a_tenth_less])
@pytest.mark.parametrize("kind", ["gradients", "whole clients"])
def test_a_share_that_is_too_small_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: Callable[[float, int], float]
) -> None:
    monkeypatch.setattr(noise_shares, "_share", share)

    report = noise(harness(tmp_path, kind))

    failed = [check.name for check in report.failed]
    assert "noise of 5 honest clients has the declared scale" in failed
    assert "5 honest clients give the epsilon of the plan" in failed


def test_counts_with_too_small_a_share_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = noise_shares.counts_scale
    monkeypatch.setattr("common.messages.secure_words.counts_scale", lambda noise, _, **more: scale(noise, 8, **more))

    failed = [check.name for check in noise(harness(tmp_path)).failed]

    assert failed == [
        f"noise of 5 honest clients in {name}" + " has the declared scale"
        for name in ("a round's counts", "the closing counts")
    ]


def test_a_client_without_noise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = noise_shares.gaussian_integers, list[int]()

    def lazy(size: int, **more: Any) -> np.ndarray:
        drawn = draw(size, **more)
        # Of models, not of counts.
        calls.extend([size] * (size > 100))
        return np.zeros_like(drawn) if size > 100 and len(calls) % 5 == 0 else drawn

    monkeypatch.setattr(noise_shares, "gaussian_integers", lazy)

    report = noise(harness(tmp_path))

    assert "noise of 5 honest clients has the declared scale" in [check.name for check in report.failed]


def test_noise_that_is_used_again_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, first = noise_shares.gaussian_integers, dict[int, np.ndarray]()
    monkeypatch.setattr(
        noise_shares, "gaussian_integers", lambda size, **more: first.setdefault(size, draw(size, **more))
    )

    report = run_privacy_test("T3", lambda: opened_independence(harness(tmp_path)))

    assert "no two shares are equal" in [check.name for check in report.failed]


def test_a_unit_that_is_not_clipped_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = dp_sgd.clipped_head_sum

    def wide(*args: Any, max_grad_norm: float, **more: Any) -> np.ndarray:
        return clip(*args, max_grad_norm=1.1 * max_grad_norm, **more)

    monkeypatch.setattr(dp_sgd, "clipped_head_sum", wide)

    report = run_privacy_test("T1", lambda: opened_replay(harness(tmp_path)))

    assert any("moves an opened sum by no more than C" in check.name for check in report.failed)
