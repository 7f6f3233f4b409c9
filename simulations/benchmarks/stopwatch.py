"""Wall and CPU seconds of a part of a process."""

import os
import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """A context that measures what happens inside it.

    `wall` and `cpu` are seconds; `cpu` counts all threads of this process, and its children that have ended.
    """

    wall = 0.0
    cpu = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter(), _cpu()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.wall, self.cpu = time.perf_counter() - self._start[0], _cpu() - self._start[1]


def seconds_of(call: Callable[[], object], *, least: float, warm_up: int = 1) -> tuple[float, float]:
    """Return wall and CPU seconds of one call, as a mean.

    It is repeated for `least` seconds.
    """
    for _ in range(warm_up):
        call()
    number = 0
    start, cpu = time.perf_counter(), _cpu()
    while time.perf_counter() - start < least or number < 3:
        call()
        number += 1
    return (time.perf_counter() - start) / number, (_cpu() - cpu) / number


def _cpu() -> float:
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system
