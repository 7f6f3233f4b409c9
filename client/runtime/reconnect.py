"""Decision on another attempt to connect after a SuperNode has ended."""

import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from client.runtime.supernode_log import NodeLog

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0
# The server counts a connection as alive until two heartbeats of 30 s are missing.
_PATIENCE = 100.0


class Next(Enum):
    """The next step after a SuperNode has ended."""

    STOP = "stop"
    AGAIN = "again"


@dataclass
class Reconnecting:
    """The state of the attempts to connect of one `bract client start`.

    Attributes:
        mark: A file that exists while the client is connected. If it exists at the start, the last connection ended
            without the server being told.
        pause: Seconds until the next attempt.
    """

    mark: Path
    pause: float = _FIRST_PAUSE
    _refused_since: float | None = None
    _abrupt: bool = field(init=False)

    def __post_init__(self) -> None:
        self._abrupt = self.mark.exists()

    def connected(self) -> None:
        """Record that the server has accepted the client."""
        self.mark.touch(mode=0o600)
        self._refused_since, self.pause = None, _FIRST_PAUSE

    def left(self) -> None:
        """Record that the client has ended its connection in order."""
        self.mark.unlink(missing_ok=True)

    def after(self, log: NodeLog, code: int | None) -> Next:
        """Decide whether to start another SuperNode.

        Args:
            log: Log of the SuperNode that has ended.
            code: Its exit code; None where it had stopped working and was ended.
        """
        # A SuperNode ends with 0 only when the server has revoked its key.
        if code == 0:
            return Next.STOP
        if log.refused:
            return self._refused()
        if code is None or log.was_connected:
            self._abrupt = True
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)
            return Next.AGAIN
        return Next.STOP

    def _refused(self) -> Next:
        """Decide after a refused key.

        The server may count our last connection as alive until its heartbeats are missing. So retry for `_PATIENCE`
        seconds, then stop.
        """
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if not self._abrupt or now - self._refused_since > _PATIENCE:
            return Next.STOP
        self.pause = 2 * _FIRST_PAUSE
        return Next.AGAIN
