"""Freed memory that the next step of training gets again."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from simulations.engines.memory import keep_freed_memory

def touch():
    blocks = [np.ones(2 << 20, dtype=np.float32) for _ in range(3)]

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], check=True, capture_output=True, text=True)
    kept, number = done.stdout.split()
    return kept, int(number)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is set")
def test_pages_of_freed_blocks_are_not_asked_for_again() -> None:
    kept, few = faults("kept")
    if kept != "True":
        pytest.skip("this C library has no such setting")

    assert few < faults("plain")[1] / 10
