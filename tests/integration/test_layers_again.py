"""The gates of the audit twenty times in a row: an alarm without a fault would cost everybody's trust in it."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

GATES = (
    "tests/simulations/privacy_tests/test_suite.py",
    "tests/simulations/privacy_tests/test_whole_suite.py",
    "tests/simulations/attacks/canary/test_campaign.py",
)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_the_gates_pass_again(number: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not soak", *GATES]

    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"time {number}: {done.stdout[-3000:]}"
