"""Copies of a run's figures, made from its files while it runs."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config.loading import defaults, load_file, override, parse
from common.system.files import write_atomic
from server.reporting.follow_run import follow_run, run_status
from server.reporting.tracking.contract import Connection, Experiment
from server.reporting.tracking.registry import TrackerKind
from server.reporting.tracking.released_values import final_figures, pictures, round_figures, shown_settings
from server.state.run_directory import RUN_ID

# What each tracker of this run has got, for a run that is resumed.
TRACKED = "tracked.json"
_SECONDS_TO_FINISH, _SECONDS_OF_SILENCE = 60.0, 2.0
_log = logging.getLogger("bract.server")


@contextmanager
def tracked(folder: Path, kinds: Sequence[TrackerKind], tell: Callable[[str], object] = _log.warning) -> Iterator[None]:
    """Copy a run's figures to trackers while the block runs it.

    A thread reads the run's files, so that a slow tracker delays no round. On leaving, what is left is copied. No
    error of a tracker reaches the run: it is told in one line, and that tracker gets no more.

    Args:
        folder: Run directory, which may not exist yet.
        kinds: Trackers to copy to.
        tell: Called with each line for the user.
    """
    if not kinds:
        yield
        return
    over = threading.Event()
    # A package that a thread were to import beside the run could be met half-loaded by a client.
    kinds = [kind for kind in kinds if _loads(kind, tell)]
    copies = (_Copy(kind, folder, tell) for kind in kinds)
    threads = [threading.Thread(target=copy.follow, args=(over,), daemon=True) for copy in copies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        until = time.monotonic() + _SECONDS_TO_FINISH
        for thread in threads:
            thread.join(_SECONDS_OF_SILENCE)
        if late := [kind.name for kind, thread in zip(kinds, threads, strict=True) if thread.is_alive()]:
            tell(f"Waiting up to {_SECONDS_TO_FINISH:.0f} s for the rest of the copy: --track {', '.join(late)}")
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for kind, thread in zip(kinds, threads, strict=True):
            if thread.is_alive():
                tell(f"--track {kind.name} does not answer; the run has ended without the rest of its copy")


def _loads(kind: TrackerKind, tell: Callable[[str], object]) -> bool:
    try:
        kind.load()
    # Other people's code may raise anything, and no run ends by it.
    except Exception as error:
        tell(f"--track {kind.name} cannot be used in this run, which goes on: {type(error).__name__}: {error}")
        return False
    return True


class _Copy:
    """Copy of a run in one tracker."""

    def __init__(self, kind: TrackerKind, folder: Path, tell: Callable[[str], object]) -> None:
        self._kind, self._folder, self._tell = kind, folder.absolute(), tell
        self._connection: Connection | None = None
        self._private = False
        self._rounds = 0

    def follow(self, over: threading.Event) -> None:
        """Copy the rounds and then the summary with the pictures."""
        try:
            follow_run(self._folder, self, num_rounds=0, num_clients=0, ended=over.is_set)
            over.wait()
            self._finish()
        # A tracker is other people's code over a network, and may raise anything.
        except Exception as error:
            what = str(error).strip().splitlines()
            self._tell(
                f"--track {self._kind.name} gets no more of this run, which goes on: "
                f"{type(error).__name__}{': ' + what[0] if what else ''}"
            )

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Open the connection."""
        # The settings say how many, and `_before` what this tracker has got.
        del num_rounds, num_clients, done
        settings = load_file(self._folder / "config.toml")
        self._private = parse(override(defaults(), settings)).private
        before = self._before()
        self._rounds = int(before.get("rounds", 0))
        # The run's own id is known to its clients and server alone.
        shown_id = hashlib.sha256(b"tracked\0" + (self._folder / RUN_ID).read_bytes().strip()).hexdigest()[:16]
        experiment = Experiment(
            self._folder.name, shown_id, self._folder, shown_settings(settings), str(before.get("id", ""))
        )
        self._connection = self._kind.connect(experiment)
        self._note(self._connection)

    def round_done(self, line: dict[str, Any]) -> None:
        """Copy a round that the tracker has not got yet."""
        if self._connection is not None and line["round"] > self._rounds:
            self._connection.log(round_figures(line, private=self._private), line["round"])
            self._rounds = line["round"]
            self._note(self._connection)

    def stop(self) -> None:
        """Do nothing until the summary is there."""

    def _finish(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if (file := self._folder / "summary.json").is_file():
            summary = json.loads(file.read_text())
            connection.finish(final_figures(summary), pictures(self._folder, summary))
        connection.close(complete=run_status(self._folder) == "complete")
        self._tell(f"Tracked  {self._kind.name}: {connection.place}")

    def _before(self) -> dict[str, Any]:
        file = self._folder / TRACKED
        known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
        return known.get(self._kind.name, {})

    def _note(self, connection: Connection) -> None:
        file = self._folder / TRACKED
        with _noting:
            known = json.loads(file.read_text()) if file.is_file() else {}
            known[self._kind.name] = {"id": connection.tracked_as, "rounds": self._rounds}
            write_atomic(file, json.dumps(known, indent=2) + "\n", durable=False, mode=0o666)


# The copies of one run share one file.
_noting = threading.Lock()
