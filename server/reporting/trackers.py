"""What happens in a run, told to whoever listens: files, a terminal, a log."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger("bract.server")


class Tracker(Protocol):
    """Listens to a run."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Called when clients are known, before the first round; `done` rounds were run before this process."""
        ...

    def round_done(self, line: dict[str, Any]) -> None:
        """Called after each round with its line of `rounds.jsonl`."""
        ...

    def stop(self) -> None:
        """Called once, however the run ended."""
        ...


class LogTracker:
    """Writes a line a round to the log: what `flwr run` streams."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Say what is about to happen."""
        _log.info("%d rounds over %d clients, %d done before", num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Say how the round went."""
        _log.info("%s", json.dumps(line))

    def stop(self) -> None:
        """Nothing is left open."""


class FileTracker:
    """Writes a line a round to `rounds.jsonl`, flushed at once.

    Args:
        file: Written anew.
        before: Lines of rounds that were run before this process.
    """

    def __init__(self, file: Path, before: Sequence[dict[str, Any]] = ()) -> None:
        self._stream = file.open("w", encoding="utf-8")
        for line in before:
            self.round_done(line)

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Nothing to write before the first round."""

    def round_done(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def stop(self) -> None:
        """Close the file."""
        self._stream.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.start(num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.round_done(line)

    def stop(self) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.stop()
