"""Record of the clients that a run waits for.

It is for whoever watches the run, and holds what the server sees by itself: whom it has asked, who has answered, and
who is connected. No client is asked for anything more.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from common.system.files import write_atomic

What = Literal["connect", "agree", "train", "evaluate", "close", "reconnect"]
Heard = Callable[[Collection[int]], None]
WAITING_FILE = "waiting.json"
# A wait that is over sooner is not worth a file. Rounds of a simulation last milliseconds.
_PATIENCE = 1.0
_SECONDS_BETWEEN_LOOKS = 2.0
# Without a sign of life for so long, the process has ended without removing its file.
MAX_SILENCE = 15.0
_MAX_LISTED = 200


@dataclass(frozen=True)
class Pending:
    """A client that has not answered.

    Attributes:
        name: Name of the client; `node N` before it has told its name.
        node: Flower's number of its node.
        away_since: Time since when it is not connected, ISO 8601, UTC; empty while it is connected.
    """

    name: str
    node: int
    away_since: str = ""


@dataclass(frozen=True)
class Wait:
    """State of a wait for clients.

    Attributes:
        what: What the clients have yet to do.
        server_round: Number of the round, 0 outside of rounds.
        since: Time of its beginning, ISO 8601, UTC.
        until: Time limit, ISO 8601, UTC; empty without one.
        needed: With so many answers it can go on at the time limit.
        total: Number of clients that it is about.
        num_pending: Number of missing clients.
        pending: Missing clients that are known, at most 200 of them.
    """

    what: What
    server_round: int
    since: str
    until: str
    needed: int
    total: int
    num_pending: int = 0
    pending: tuple[Pending, ...] = ()


def read_wait(folder: Path) -> tuple[Wait, float] | None:
    """Return the wait in a run's folder with the seconds since it was written.

    None stands for a run that waits for nobody, or whose file cannot be read.
    """
    file = folder / WAITING_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        pending = tuple(Pending(**one) for one in values.pop("pending"))
        return Wait(**values, pending=pending), time.time() - file.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Waiting:
    """Writer of a run's waits into its folder.

    Args:
        folder: Folder of the run; None writes nothing.
        connected: Returns the numbers of all connected nodes.
        needed: Least number of clients with which a round goes on.
    """

    def __init__(
        self, folder: Path | None = None, connected: Callable[[], Iterable[int]] = tuple, needed: int = 0
    ) -> None:
        self._file = None if folder is None else folder / WAITING_FILE
        self._connected, self._needed = connected, needed
        if self._file is not None:
            # That of a process which was killed. This one waits for nobody yet.
            self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def during(
        self,
        what: What,
        asked: Mapping[str, int],
        *,
        seconds: float | None,
        server_round: int = 0,
        total: int | None = None,
        needed: int | None = None,
    ) -> Iterator[Heard]:
        """Yield a function that the caller tells which nodes have answered.

        It may be called at every turn of a loop, and seldom does anything.

        Args:
            what: See `Wait`.
            asked: Node of each client that is waited for, by name; empty where the names are not known.
            seconds: Time limit.
            server_round: Number of the round.
            total: Number of clients that it is about, if not only those that are asked.
            needed: With so many it goes on; the run's own number if left out.
        """
        if self._file is None:
            yield _nothing
            return
        now = datetime.now(UTC)
        wait = Wait(
            what,
            server_round,
            since=now.isoformat(timespec="milliseconds"),
            until="" if seconds is None else (now + timedelta(seconds=seconds)).isoformat(timespec="milliseconds"),
            needed=self._needed if needed is None else needed,
            total=len(asked) if total is None else total,
        )
        look = _Look(self._file, self._connected, asked, wait)
        try:
            yield look.turn
        finally:
            look.end()


class _Look:
    """Record of one wait, written when it has lasted for a second."""

    def __init__(
        self, file: Path, connected: Callable[[], Iterable[int]], asked: Mapping[str, int], wait: Wait
    ) -> None:
        self._file, self._connected, self._asked, self._wait = file, connected, asked, wait
        self._next = time.monotonic() + _PATIENCE
        self._away: dict[int, str] = {}
        self._written = False

    def turn(self, answered: Collection[int]) -> None:
        """Write who is missing, unless that was done a moment ago."""
        if time.monotonic() < self._next:
            return
        # Whoever watches is no reason for a run to fail: neither a full disk nor a list that cannot be had.
        with contextlib.suppress(Exception):
            self._note_away()
        missing = [(name, node) for name, node in self._asked.items() if node not in answered]
        wait = replace(
            self._wait,
            num_pending=len(missing) if self._asked else max(0, self._wait.total - len(answered)),
            pending=tuple(Pending(name, node, self._away.get(node, "")) for name, node in missing[:_MAX_LISTED]),
        )
        with contextlib.suppress(OSError):
            write_atomic(self._file, json.dumps(asdict(wait)), durable=False, mode=0o666)
            self._written = True
        self._next = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def _note_away(self) -> None:
        connected, now = set(self._connected()), datetime.now(UTC).isoformat(timespec="milliseconds")
        self._away = {node: self._away.get(node, now) for node in self._asked.values() if node not in connected}

    def end(self) -> None:
        """Remove the file."""
        if self._written:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _nothing(_: Collection[int]) -> None:
    """Write nothing."""
