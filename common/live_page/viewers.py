"""Page that many viewers share, rendered once for each change."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Protocol

from common.page.blocks import Page
from common.page.render import render

# Two looks and one rendering fit into the two seconds within which a new round is shown.
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_SIGNS = 15.0
# A large page is rendered seldom enough to leave the run most of a core.
_RENDERING_TO_WAITING = 0.2


class Watched(Protocol):
    """Contract of what a live page shows."""

    def mark(self) -> str:
        """Return a text that changes with the page.

        It is asked for twice a second, so it must be cheap.
        """
        ...

    def page(self) -> Page:
        """Return the page as it is now."""
        ...


class Viewers:
    """Viewers of one page, told of each new version of its page.

    Attributes:
        html: Newest version of the page.
        version: Number of that version, from 1.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._mark, self._changed = "", asyncio.Condition()
        self._next_rendering, self._one_at_a_time = 0.0, asyncio.Lock()
        self._viewers = 0
        self.html, self.version = "", 0

    async def refresh(self) -> None:
        """Render the page again if its files have changed."""
        # Many viewers may come at once. One rendering serves all of them.
        async with self._one_at_a_time:
            if time.monotonic() < self._next_rendering:
                return
            mark = await asyncio.to_thread(self._watched.mark)
            if mark == self._mark:
                return
            started = time.monotonic()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.html = await asyncio.to_thread(lambda: render(self._watched.page(), version=self.version + 1, now=now))
            self._next_rendering = time.monotonic() + (time.monotonic() - started) / _RENDERING_TO_WAITING
            async with self._changed:
                self._mark, self.version = mark, self.version + 1
                self._changed.notify_all()

    async def keep_fresh(self) -> None:
        """Look for changes as long as there are viewers."""
        while True:
            # Files that are moved away, or half written, must not end the page for those who look.
            with contextlib.suppress(Exception):
                if self._viewers:
                    await self.refresh()
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    async def versions(self) -> AsyncIterator[str]:
        """Yield the newest version's number as server-sent events.

        A viewer that reads slowly gets the newest number only, and delays nobody.
        """
        self._viewers += 1
        told = 0
        try:
            while True:
                if told != self.version:
                    told = self.version
                    yield f"data: {told}\n\n"
                    continue
                try:
                    async with asyncio.timeout(_SECONDS_BETWEEN_SIGNS), self._changed:
                        await self._changed.wait()
                except TimeoutError:
                    # Without a sign the viewer's machine could take the connection for a lost one.
                    yield ": still here\n\n"
        finally:
            self._viewers -= 1
