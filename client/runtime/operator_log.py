"""The log of a client, on its operator's terminal and in a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from rich.console import Console

from common.system.console import printable

LOG_FILE = "client.log"
_BYTES, _BACKUPS = 1_000_000, 3
_log = logging.getLogger("bract.client")


class OperatorLog:
    """The lines that a client's operator reads, made safe for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """Print a line and write it to the file."""
        line = printable(line)
        self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        _log.info(line)

    def warn(self, line: str) -> None:
        """Warn the operator on stderr and in the file."""
        _log.warning(printable(line))

    def log(self, level: int, text: str) -> None:
        """Log a line of a task at the task's own level."""
        _log.log(level, printable(text))

    def keep(self, line: str) -> None:
        """Write a line to the file only."""
        _log.debug(printable(line))


@contextmanager
def operator_log(folder: Path, console: Console) -> Iterator[OperatorLog]:
    """Send Bract's log to stderr and to a client's folder until the block ends.

    Args:
        folder: The client's folder; old parts of its log are dropped at four megabytes.
        console: Console for plain lines.
    """
    ours = logging.getLogger("bract")
    before = (ours.handlers[:], ours.level, ours.propagate)
    aloud = logging.StreamHandler()
    aloud.setLevel(logging.WARNING)
    file = RotatingFileHandler(folder / LOG_FILE, maxBytes=_BYTES, backupCount=_BACKUPS, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours.handlers[:] = [aloud, file]
    ours.setLevel(logging.DEBUG)
    ours.propagate = False
    try:
        yield OperatorLog(console)
    finally:
        ours.handlers[:], ours.propagate = before[0], before[2]
        ours.setLevel(before[1])
        file.close()
