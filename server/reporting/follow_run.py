"""Watch a run that another process runs, by the files it leaves."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from server.reporting.trackers import Tracker

_PAUSE = 0.2


def follow_run(folder: Path, tracker: Tracker, *, num_rounds: int, num_clients: int, ended: Callable[[], bool]) -> None:
    """Show a run's rounds as they are written, until it is complete or has ended otherwise.

    Args:
        folder: The run's; need not be there yet.
        tracker: Shows the rounds.
        num_rounds: How many are planned.
        num_clients: For how many clients.
        ended: Asked again and again: whether nothing more will come.
    """
    file = folder / "rounds.jsonl"
    shown, started = 0, False
    while True:
        over = run_status(folder) == "complete" or ended()
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
    """What a run says of itself: `complete`, `interrupted`, or `not started` before its first round is done."""
    file = folder / "summary.json"
    return str(json.loads(file.read_text())["status"]) if file.is_file() else "not started"


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
