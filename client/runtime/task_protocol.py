"""Messages between a launcher and the process of a task."""

import contextlib
import json
import logging
from dataclasses import dataclass
from multiprocessing.connection import Connection


@dataclass(frozen=True)
class Order:
    """The order to do one task.

    Attributes:
        address: The SuperNode's address for tasks, `host:port`.
        token: Proof for the SuperNode that the task is ours.
        folder: The client's folder.
        launcher: Process id of the launcher; the task ends with it.
        unanswered: Envelope of a message whose process ended without a reply; then only a failure is sent.
    """

    address: str
    token: str
    folder: str
    launcher: int
    unanswered: bytes = b""


class Report:
    """The sender of a task's reports to its launcher.

    Reports are JSON. The launcher must not unpickle anything that a bundle's code could have written.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def asked(self, kind: str, envelope: bytes) -> None:
        """Report the kind of the message with its envelope."""
        self._send({"asked": [kind, envelope.hex()]})

    def round(self, server_round: int) -> None:
        """Report the message's round, zero for none."""
        self._send({"round": server_round})

    def done(self, remark: str) -> None:
        """Report the end of the task, with a remark unless it was answered."""
        self._send({"done": remark})

    def log(self, level: int, text: str) -> None:
        """Report a line of the log."""
        self._send({"log": [level, text]})

    def handler(self) -> logging.Handler:
        """Return a handler that reports log records."""
        return _ReportHandler(self)

    def _send(self, report: dict[str, object]) -> None:
        # Without a launcher nobody reads reports, and this process is about to end too.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(report).encode())


class _ReportHandler(logging.Handler):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.log(record.levelno, self.format(record))
