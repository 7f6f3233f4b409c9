"""Observation of another process's run by its files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from server.reporting.trackers import Tracker

_PAUSE = 0.2


def follow_run(folder: Path, tracker: Tracker, *, num_rounds: int, num_clients: int, ended: Callable[[], bool]) -> None:
    """Pass a run's rounds to a tracker until the run has ended.

    Args:
        folder: Folder of the run, which may not exist yet.
        tracker: Tracker that gets the rounds.
        num_rounds: Number of planned rounds.
        num_clients: Number of clients.
        ended: Returns whether the run can write no more files; called repeatedly.
    """
    file = folder / "rounds.jsonl"
    shown, started = 0, False
    while True:
        # Asked before reading, so that no line written before the end is missed.
        over = run_status(folder) == "complete" or ended()
        # A line without its end is still being written.
        lines = [line for line in _lines(file) if line.endswith("\n")]
        if lines and not started:
            tracker.start(num_rounds, num_clients, 0)
            started = True
        for line in lines[shown:]:
            tracker.round_done(json.loads(line))
        shown = max(shown, len(lines))
        if over:
            tracker.stop()
            return
        time.sleep(_PAUSE)


def run_status(folder: Path) -> str:
    """Return the run's status, `not started` before its first round is complete."""
    file = folder / "summary.json"
    return str(json.loads(file.read_text())["status"]) if file.is_file() else "not started"


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
