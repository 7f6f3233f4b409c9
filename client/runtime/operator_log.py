"""What a client tells its operator: lines on the console, warnings on stderr, and all of it in a file."""

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


class Voice:
    """Where the lines go."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """One line for the operator."""
        line = printable(line)
        self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        _log.info(line)

    def warn(self, line: str) -> None:
        """One line that somebody should act on."""
        _log.warning(printable(line))

    def log(self, level: int, text: str) -> None:
        """What a task logged."""
        _log.log(level, printable(text))

    def keep(self, line: str) -> None:
        """One line for the file only."""
        _log.debug(printable(line))


@contextmanager
def voice_of(folder: Path, console: Console) -> Iterator[Voice]:
    """Log to stderr and to a client's own folder, as long as it runs.

    Args:
        folder: The client's; its log is kept small.
        console: Where plain lines go.
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
        yield Voice(console)
    finally:
        ours.handlers[:], ours.propagate = before[0], before[2]
        ours.setLevel(before[1])
        file.close()
