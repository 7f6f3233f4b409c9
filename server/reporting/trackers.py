"""Trackers that get the progress of a run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger("bract.server")


class Tracker(Protocol):
    """Contract of a tracker."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Begin a run of `num_rounds` rounds, of which `done` are complete already."""
        ...

    def round_done(self, line: dict[str, Any]) -> None:
        """Take the line of `rounds.jsonl` about a complete round."""
        ...

    def stop(self) -> None:
        """End the run, whether it is complete or not."""
        ...


class LogTracker:
    """Tracker that writes each round to the log of `flwr run`."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Log the size of the run."""
        _log.info("%d rounds over %d clients, %d done before", num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Log the line of a round."""
        _log.info("%s", json.dumps(line))

    def stop(self) -> None:
        """Do nothing."""


class FileTracker:
    """Tracker that writes each round to `rounds.jsonl` at once.

    Args:
        file: File to write; old content is replaced.
        before: Lines of rounds that were complete before this process.
    """

    def __init__(self, file: Path, before: Sequence[dict[str, Any]] = ()) -> None:
        self._stream = file.open("w", encoding="utf-8")
        for line in before:
            self.round_done(line)

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Do nothing."""

    def round_done(self, line: dict[str, Any]) -> None:
        """Append the line of a round."""
        self._stream.write(json.dumps(line) + "\n")
        # Other processes follow the run by this file.
        self._stream.flush()

    def stop(self) -> None:
        """Close the file."""
        self._stream.close()


class Trackers:
    """Tracker that passes every call to several trackers."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Pass the call to all trackers."""
        for tracker in self._trackers:
            tracker.start(num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Pass the call to all trackers."""
        for tracker in self._trackers:
            tracker.round_done(line)

    def stop(self) -> None:
        """Pass the call to all trackers."""
        for tracker in self._trackers:
            tracker.stop()
