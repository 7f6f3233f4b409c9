"""What a launcher tells a task's process, and what that tells the launcher."""

import contextlib
import json
import logging
from dataclasses import dataclass
from multiprocessing.connection import Connection


@dataclass(frozen=True)
class Order:
    """One task.

    Attributes:
        address: Where the SuperNode hands it out, `host:port`.
        token: What shows the SuperNode whose task it is.
        folder: The client's.
        launcher: Process id of the launcher: the task ends with it.
        unanswered: The message's envelope, where a process ended before it had answered and only that is to be said.
    """

    address: str
    token: str
    folder: str
    launcher: int
    unanswered: bytes = b""


class Report:
    """A task's end of the way to its launcher: JSON, since what comes out of a bundle's process is not unpickled."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def asked(self, kind: str, envelope: bytes) -> None:
        """What the server wants."""
        self._send({"asked": [kind, envelope.hex()]})

    def round(self, server_round: int) -> None:
        """Which round that belongs to; 0 if to none."""
        self._send({"round": server_round})

    def done(self, remark: str) -> None:
        """The task is over; with a remark unless it was answered in full."""
        self._send({"done": remark})

    def log(self, level: int, text: str) -> None:
        """A line of the log."""
        self._send({"log": [level, text]})

    def handler(self) -> logging.Handler:
        """Sends log records the same way."""
        return _ReportHandler(self)

    def _send(self, what: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone, and this process with it
            self._connection.send_bytes(json.dumps(what).encode())


class _ReportHandler(logging.Handler):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.log(record.levelno, self.format(record))
