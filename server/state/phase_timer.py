"""Seconds by phase of a run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Adds up wall time by phase; `total` runs from its making."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._before = 0.0
        self._phases: dict[str, float] = {}
        self._under_way: dict[str, float] = {}

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Count what an earlier process has measured of the same run."""
        self._before += seconds.get("total", 0.0)
        for name, value in seconds.items():
            if name != "total":
                self.add(name, value)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase, also if it ends by an exception."""
        self._under_way[name] = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - self._under_way.pop(name))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, one under way included, and in total, to the millisecond."""
        now = time.perf_counter()
        open_ = {name: self._phases.get(name, 0.0) + now - started for name, started in self._under_way.items()}
        found = self._phases | open_ | {"total": self._before + now - self._started}
        return {name: round(value, 3) for name, value in found.items()}
