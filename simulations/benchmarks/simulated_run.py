"""A simulation as a variant's job."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_simulation(settings: Mapping[str, Any], scratch: str) -> tuple[dict[str, Any], Path]:
    """Run a simulation in this process and return its summary and folder.

    Args:
        settings: Settings that differ from the defaults.
        scratch: Parent of the folder, which has a name of its own.
    """
    from rich.console import Console

    from common.config.loading import defaults, override, parse
    from simulations.simulate import run_job

    folder = tempfile.mkdtemp(prefix="run-", dir=scratch)
    config = parse(override(defaults(), {**settings, "output-dir": folder}))
    return run_job(config, engine="in-process", baselines=False, console=Console(quiet=True))


def seconds_of_rounds(folder: Path) -> list[float]:
    """Return the seconds of each round but the first."""
    return _seconds(folder)[1:]


def first_round_seconds(folder: Path) -> float:
    """Return the seconds of the first round.

    That one also opens the workers and the clients' data.
    """
    return _seconds(folder)[0]


def _seconds(folder: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
