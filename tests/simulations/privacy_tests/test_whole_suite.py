"""Every layer of the audit at its own sizes, in plans of each kind.

Drives `simulations.privacy_tests.suite`.
"""

from pathlib import Path

import pytest

from common.config.loading import Scalar
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import run_privacy_test
from simulations.privacy_tests.suite import privacy_tests_of
from tests.support.simulations.harness import CLIENT_DP, MODES, harness_of, said

SELDOM: dict[str, Scalar] = {"evaluation.every": 2, "training.class-weights": "1, 5, 0.5"}


BALANCED: dict[str, Scalar] = {"training.class-weights": "balanced"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        CLIENT_DP,
        {"privacy.unit": "group"},
        SELDOM,
        BALANCED,
        BALANCED | {"privacy.unit": "group"},
    ],
    ids=["image", "client", "group", "seldom, weighted", "balanced", "balanced groups"],
)
def test_every_layer_holds(tmp_path: Path, settings: dict[str, Scalar]) -> None:
    harness: ClientHarness = harness_of(tmp_path, settings)

    for layer, checks in privacy_tests_of(harness).items():
        report = run_privacy_test(layer, checks)
        assert report.holds, said(report)


def test_sums_are_charged_once_and_under_faults(tmp_path: Path) -> None:
    # The other layers look at every mode above.
    tests = privacy_tests_of(harness_of(tmp_path, MODES["sums"]))

    for layer in ("T5", "T8"):
        report = run_privacy_test(layer, tests[layer])
        assert report.holds, said(report)
