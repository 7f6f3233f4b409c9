"""T1 to T3 of what a server reads in secure sums with noise in shares, and faults that they must find.

Drives `simulations.harness.open_sums`, `simulations.privacy_tests.opened_sums`,
`simulations.privacy_tests.opened_counts`, `simulations.privacy_tests.opened_epsilon`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.training import dp_sgd
from common.config.loading import Scalar
from common.messages.counts_in_sums import noise_of
from common.messages.fields import (
    CORRECT,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NOISED_SUBGROUP_COUNTS,
)
from common.privacy.counts.counts_plan import CountsPlan
from common.secagg import noise_shares
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests import opened_sums
from simulations.privacy_tests.check import PrivacyTestReport, run_privacy_test
from simulations.privacy_tests.opened_counts import opened_counts
from simulations.privacy_tests.opened_epsilon import epsilon_checks
from simulations.privacy_tests.opened_sums import opened_independence, opened_noise, opened_replay
from simulations.privacy_tests.suite import privacy_tests_of
from tests.support.simulations.harness import harness_of, said

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


def noise(bench: ClientHarness, *, counts: int = 600) -> PrivacyTestReport:
    return run_privacy_test("T2", lambda: opened_noise(bench, draws=4_000, counts=counts))


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

    # With 600 one run in a hundred would miss one of them, by chi-square.
    failed = [check.name for check in noise(harness(tmp_path), counts=1_200).failed]

    assert [name for name in failed if name.endswith("scale")] == [
        f"noise of 5 honest clients in {name} has the declared scale"
        for name in ("a round's count of right answers", "a round's count of wrong answers", "the closing matrix")
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


def of_the_others(drawn: np.ndarray, client: int) -> np.ndarray:
    return drawn * (0.0 if client == 1 else 1.25**0.5)


def of_two_thirds(drawn: np.ndarray, _: int) -> np.ndarray:
    return np.rint(drawn * (np.arange(len(drawn)) >= len(drawn) // 3) * 1.5**0.5)


def of_all_but_a_bias(drawn: np.ndarray, _: int) -> np.ndarray:
    return drawn * (np.arange(len(drawn)) < len(drawn) - 7)


def of_signs(drawn: np.ndarray, _: int) -> np.ndarray:
    return np.rint(np.where(drawn < 0, -1, 1) * drawn.std())


def without_low_digits(drawn: np.ndarray, _: int) -> np.ndarray:
    return np.rint(drawn / 64) * 64


def of_half_a_step(drawn: np.ndarray, _: int) -> np.ndarray:
    return drawn[np.arange(len(drawn)) // 2]


def of_all_but_the_last_tensor(drawn: np.ndarray, _: int) -> np.ndarray:
    # Sums over features have 1,176 second moments and 144 sums by class here.
    return np.rint(drawn * (np.arange(len(drawn)) < 1_176) * (1_320 / 1_176) ** 0.5)


Fault = Callable[[np.ndarray, int], np.ndarray]
SUM, SHARE = "noise of {t} honest clients", "the share of client 1"
MISSHAPEN: list[tuple[Fault, str, int, set[str]]] = [
    (of_the_others, "gradients", 5, {f"{SHARE} has the declared scale"}),
    (of_two_thirds, "gradients", 5, {f"{SUM} is in each value", f"{SHARE} has the shape of a normal"}),
    (of_all_but_a_bias, "gradients", 5, {f"{SUM} is in each value"}),
    (of_all_but_the_last_tensor, "statistics", 5, {f"{SUM} in class-sums has the declared scale"}),
    (of_signs, "gradients", 2, {f"{SHARE} has the shape of a normal", f"{SHARE} takes all values of the grid"}),
    (of_signs, "whole clients", 5, {f"{SHARE} has the shape of a normal", f"{SHARE} takes all values of the grid"}),
    (without_low_digits, "gradients", 5, {f"{SHARE} has all low digits"}),
    (of_half_a_step, "gradients", 5, {f"{SHARE} takes all values of the grid"}),
]


@pytest.mark.parametrize(("fault", "kind", "honest", "found"), MISSHAPEN)
def test_shares_with_the_energy_of_normals_and_another_law_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: str, honest: int, found: set[str]
) -> None:
    draw, calls = noise_shares.gaussian_integers, count()
    monkeypatch.setattr(
        noise_shares, "gaussian_integers", lambda size, **more: fault(draw(size, **more), next(calls) % honest + 1)
    )
    # Without counts and accountants, which take longer than the noise.
    monkeypatch.setattr(opened_sums, "epsilon_checks", lambda *_: ())
    bench = harness_of(tmp_path, SECURE | KINDS[kind] | {"privacy.secure-honest": honest, "privacy.metrics": "none"})

    report = noise(bench)

    assert {name.format(t=honest) for name in found} <= {check.name for check in report.failed}, said(report)


FULL: dict[str, Scalar] = {
    "privacy.closing": "full",
    "data.classes": "a,b,c",
    "data.subgroup-column": "sex",
    "data.subgroups": "f,m",
}


def counted(folder: Path) -> PrivacyTestReport:
    bench = harness_of(folder, SECURE | FULL)
    plan = bench.plan.counts
    assert plan is not None
    return run_privacy_test("T2", lambda: opened_counts(bench, plan, 5, 300))


def test_all_kinds_of_counts_in_sums_have_their_noise(tmp_path: Path) -> None:
    report = counted(tmp_path)

    assert report.holds, said(report)
    assert len(report.checks) == 1 + 6 * 5


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (CORRECT, "a round's count of right answers"),
        (NOISED_CONFUSION, "the closing matrix"),
        (NOISED_SCORE_COUNTS, "the score histograms"),
        (NOISED_CONFIDENCE_COUNTS, "the confidence histogram"),
        (NOISED_SUBGROUP_COUNTS, "the counts by subgroup"),
    ],
)
def test_a_kind_of_counts_without_its_noise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    def quiet(asked: str, plan: CountsPlan | None) -> tuple[float, int]:
        noise, shares = noise_of(asked, plan)
        return (0.001 * noise if asked == key else noise), shares

    monkeypatch.setattr("common.messages.secure_words.noise_of", quiet)

    failed = [check.name for check in counted(tmp_path).failed]

    assert f"noise of 5 honest clients in {name} has the declared scale" in failed
    # Its finer grid shows too, and no other kind of counts does.
    assert all(f" in {name} " in check for check in failed)


def test_shares_of_counts_of_another_law_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = noise_shares.gaussian_integers
    monkeypatch.setattr(noise_shares, "gaussian_integers", lambda size, **more: of_signs(draw(size, **more), 1))

    failed = [check.name for check in counted(tmp_path).failed]

    # Histograms are large enough that the signs of one draw have the deviation of normals.
    assert "each share in the score histograms has the shape of a normal" in failed
    assert "each share in the score histograms takes all values of the grid" in failed


TARGET: dict[str, Scalar] = {"privacy.noise-multiplier": "", "privacy.target-epsilon": 8.0}


def epsilons(bench: ClientHarness) -> PrivacyTestReport:
    return run_privacy_test("T2", lambda: epsilon_checks(bench, 5, np.random.default_rng(3).standard_normal(4_000)))


@pytest.mark.slow
def test_a_plan_that_is_calibrated_too_low_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = harness_of(tmp_path, SECURE | TARGET)
    good = epsilons(bench)
    assert good.holds, said(good)
    assert bench.plan.counts is not None
    quiet = replace(bench.plan.counts, closing_noise_stddev=0.5)
    low = replace(bench.plan, noise_multiplier=0.8 * bench.plan.noise_multiplier, counts=quiet)
    monkeypatch.setitem(vars(bench), "plan", low)

    failed = [check.name for check in epsilons(bench).failed]

    assert failed == ["the epsilon of sums is not above the target", "the epsilon of counts is not above the target"]


def test_a_plan_that_counts_too_few_rounds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = harness(tmp_path)
    monkeypatch.setitem(vars(bench), "plan", replace(bench.plan, num_rounds=1))

    assert "the plan's epsilon of sums is not below an independent one" in [c.name for c in epsilons(bench).failed]


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
