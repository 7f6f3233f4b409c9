"""The check of whole simulations on a device."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import BractError
from simulations.device_check.findings import Finding, Sizes

_ROOT = Path(__file__).parents[2]
# Name of a run -> its settings and the largest difference of accuracy that passes. Noise is never seeded, so that two
# private runs differ by more.
_RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "run, head": ({"privacy.mechanism": "none"}, 0.01),
    "run, private cnn": (
        {
            "model.backbone": "cnn",
            "training.local-epochs": 1,
            "training.learning-rate": 0.2,
            "privacy.noise-multiplier": 0.5,
        },
        0.15,
    ),
}


def check_whole_runs(device: str, sizes: Sizes) -> Iterator[Finding]:
    """Simulate on the device and on the processor and compare their accuracy.

    Raises:
        BractError: A simulation failed. The message has the end of what it wrote.
    """
    for part, (settings, limit) in _RUNS.items():
        chosen = {**settings, "num-rounds": sizes.rounds}
        summary, seconds = _simulate(chosen, device)
        beside, beside_seconds = _simulate(chosen, "cpu")
        accuracy, of_processor = float(summary["accuracy"]), float(beside["accuracy"])
        yield Finding(part, "accuracy", accuracy, processor=of_processor)
        yield Finding(part, "difference of accuracy", abs(accuracy - of_processor), limit)
        yield Finding(part, "seconds in all", seconds, processor=beside_seconds)


def _simulate(settings: dict[str, Any], device: str) -> tuple[dict[str, Any], float]:
    """Run the command as a user does, with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="bract-device-check-") as scratch:
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "bract", "simulate", "--json", "--device", device, "--out", f"{scratch}/run"]
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        started = time.perf_counter()
        done = subprocess.run(  # noqa: S603
            [*command, *words],
            env={**os.environ, "BRACT_HOME": f"{scratch}/home", "PYTHONPATH": paths},
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise BractError(f"a simulation on {device} failed; the end of what it wrote:\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary, seconds
