"""What a layer of the audit found: checks that passed or failed, each with what was seen."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.errors import BractError


@dataclass(frozen=True)
class Check:
    """One assertion about what a client releases.

    Attributes:
        name: What must hold.
        passed: Whether it did.
        seen: The figures.
    """

    name: str
    passed: bool
    seen: str = ""


@dataclass(frozen=True)
class LayerReport:
    """All checks of one layer.

    Attributes:
        layer: `T1` to `T8`.
        checks: In the order they were made.
        seconds: What they took.
    """

    layer: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not hold."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def holds(self) -> bool:
        """Whether something was checked, and all of it holds."""
        return bool(self.checks) and not self.failed


def run_layer(layer: str, checks: Callable[[], Iterable[Check]]) -> LayerReport:
    """Make all checks of a layer; an error on the way is a check that failed.

    Args:
        layer: Its name.
        checks: Makes the checks, one by one.
    """
    started, found = time.perf_counter(), list[Check]()
    try:
        found.extend(checks())
    except BractError as error:
        found.append(Check("the layer ran to its end", passed=False, seen=f"{type(error).__name__}: {error}"))
    return LayerReport(layer, tuple(found), time.perf_counter() - started)
