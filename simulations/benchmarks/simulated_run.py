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


def seconds_a_round(folder: Path) -> float:
    """Return the mean seconds of a round with its checkpoint and files.

    The first round opens the workers and is left out.
    """
    first = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])
    summary = json.loads((folder / "summary.json").read_text())
    rest: float = summary["seconds"]["rounds"] - first["seconds"]
    later: int = summary["rounds"] - 1
    return rest / later


def seconds_of_rounds(folder: Path) -> list[float]:
    """Return the seconds of each round but the first.

    That one also opens the workers and the clients' data.
    """
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines[1:]]
