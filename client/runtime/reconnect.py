"""Whether a SuperNode that has ended, or only looks alive, is worth another try."""

import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from client.runtime.supernode_log import NodeLog

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0
# A server holds a key that went without a word for connected until it has missed its heartbeats: 30 s, twice.
_PATIENCE = 100.0


class Next(Enum):
    """What to do when a SuperNode has ended."""

    STOP = "stop"
    AGAIN = "again"


@dataclass
class Reconnecting:
    """Decides over the attempts of one `bract client start`.

    Attributes:
        mark: A file that is there while the client is connected: one that is there before says that the last
            connection ended without a word to the server.
        pause: Seconds until the next attempt.
    """

    mark: Path
    pause: float = _FIRST_PAUSE
    _refused_since: float | None = None
    _abrupt: bool = field(init=False)

    def __post_init__(self) -> None:
        self._abrupt = self.mark.exists()

    def connected(self) -> None:
        """The server has let the client in."""
        self.mark.touch(mode=0o600)
        self._refused_since, self.pause = None, _FIRST_PAUSE

    def left(self) -> None:
        """The client has taken its leave of the server."""
        self.mark.unlink(missing_ok=True)

    def after(self, log: NodeLog, code: int | None) -> Next:
        """What to do now.

        Args:
            log: Of the SuperNode that has ended.
            code: Its exit code; None where it was ended because it had stopped working.
        """
        if code == 0:  # it was told to go: its key is revoked
            return Next.STOP
        if log.refused:
            return self._refused()
        if code is None or log.was_connected:
            self._abrupt = True
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)
            return Next.AGAIN
        return Next.STOP

    def _refused(self) -> Next:
        """A key that was let in a moment ago may only be held for connected still."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if not self._abrupt or now - self._refused_since > _PATIENCE:
            return Next.STOP
        self.pause = 2 * _FIRST_PAUSE
        return Next.AGAIN
