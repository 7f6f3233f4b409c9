"""Warnings about strangers, who must not be able to fill a disk with them."""

import logging
import time
from collections.abc import Callable

_SECONDS_BETWEEN_LINES = 10.0
# Flower's own logger: the line looks like its others, and goes wherever they go.
_LOGGER = logging.getLogger("flwr")


class RareWarnings:
    """Warnings that cannot fill a disk: at most one in ten seconds, which says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def warn(self, text: str) -> None:
        """Log the text, or count it."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._next, self._left_out = now + _SECONDS_BETWEEN_LINES, 0
        _LOGGER.warning("Gate: %s%s", text, more)
