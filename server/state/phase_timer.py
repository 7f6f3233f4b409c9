"""Wall time of a run by phase."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Clock:
    """Wall time by phase and in total since the clock was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._before = 0.0
        self._phases: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def continue_from(self, seconds: Mapping[str, float]) -> None:
        """Add what `seconds` of an earlier process of the same run returned."""
        self._before += seconds.get("total", 0.0)
        for name, value in seconds.items():
            if name != "total":
                self.add(name, value)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase, even if an exception ends it."""
        self._open[name] = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - self._open.pop(name))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a phase."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Return seconds by phase and in total, to the millisecond."""
        now = time.perf_counter()
        open_phases = {name: self._phases.get(name, 0.0) + now - started for name, started in self._open.items()}
        measured = self._phases | open_phases | {"total": self._before + now - self._started}
        return {name: round(value, 3) for name, value in measured.items()}
