"""Record of a running client's connection and tasks.

It is for the client's operator, stays in the client's folder and is never sent.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from common.system.console import printable
from common.system.files import write_atomic

ACTIVITY_FILE = "activity.json"
_MAX_DONE, _MAX_TEXT = 20, 200


class Link(StrEnum):
    """The state of a client's connection to the server."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    NO_ANSWER = "no answer"
    BROKEN = "broken off"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(frozen=True)
class DoneTask:
    """A task that is over.

    Attributes:
        time: Time of its end, ISO 8601, UTC.
        label: Round and kind of its message.
        seconds: How long it took. This is shown here and never sent.
        remark: Why nothing but a failure code left, or nothing at all; empty for an answer.
    """

    time: str
    label: str
    seconds: float
    remark: str


@dataclass(frozen=True)
class Activity:
    """State of a client when it last wrote it.

    Attributes:
        link: State of the connection.
        since: Time since when it is so, ISO 8601, UTC.
        task: Round and kind of the running task; empty without one.
        task_since: Time of its beginning, ISO 8601, UTC.
        done: The last tasks that are over, the newest last.
    """

    link: Link
    since: str
    task: str = ""
    task_since: str = ""
    done: tuple[DoneTask, ...] = ()


def read_activity(folder: Path) -> Activity | None:
    """Return a client's last activity, None if its folder holds none."""
    try:
        values = json.loads((folder / ACTIVITY_FILE).read_text(encoding="utf-8"))
        done = tuple(DoneTask(**task) for task in values.pop("done"))
        return Activity(**values | {"link": Link(values["link"]), "done": done})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class ActivityRecord:
    """The writer of a client's activity, with the tasks of the time before."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file, self._now = folder / ACTIVITY_FILE, now
        before = read_activity(folder)
        self._activity = Activity(Link.CONNECTING, self._time(), done=() if before is None else before.done)
        self._write()

    def link(self, state: Link) -> None:
        """Record a changed state of the connection."""
        if state is not self._activity.link:
            self._activity = replace(self._activity, link=state, since=self._time())
            self._write()

    def task(self, label: str) -> None:
        """Record a changed label of the running task, empty for none."""
        if label != self._activity.task:
            since = "" if not label else self._activity.task_since or self._time()
            self._activity = replace(self._activity, task=label, task_since=since)
            self._write()

    def done(self, label: str, seconds: float, remark: str) -> None:
        """Record the end of a task."""
        task = DoneTask(self._time(), label, round(seconds, 1), printable(remark[:_MAX_TEXT], keep=""))
        kept = (*self._activity.done, task)[-_MAX_DONE:]
        self._activity = replace(self._activity, task="", task_since="", done=kept)
        self._write()

    def _time(self) -> str:
        return self._now().isoformat(timespec="milliseconds")

    def _write(self) -> None:
        # A disk that is full stops no client: this is for its operator's eyes alone.
        with contextlib.suppress(OSError):
            write_atomic(self._file, json.dumps(asdict(self._activity)), durable=False, mode=0o600)
