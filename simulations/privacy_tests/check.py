"""Checks of a privacy test and the report of their results."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.errors import BractError


@dataclass(frozen=True)
class Check:
    """Result of one assertion about what a client releases.

    Attributes:
        name: Statement that must hold.
        passed: Whether it holds.
        seen: Measured figures.
    """

    name: str
    passed: bool
    seen: str = ""


@dataclass(frozen=True)
class PrivacyTestReport:
    """Report of all checks of one privacy test.

    Attributes:
        test: `T1` to `T8`.
        checks: Checks in the order they were made.
        seconds: Duration of the test.
    """

    test: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def holds(self) -> bool:
        """True if there are checks and all of them hold."""
        return bool(self.checks) and not self.failed


def run_privacy_test(test: str, checks: Callable[[], Iterable[Check]]) -> PrivacyTestReport:
    """Run all checks of a privacy test and report the results.

    An error of Bract during the test is a failed check.

    Args:
        test: `T1` to `T8`.
        checks: Makes the checks one by one.
    """
    started, results = time.perf_counter(), list[Check]()
    try:
        results.extend(checks())
    except BractError as error:
        results.append(Check("the test ran to its end", passed=False, seen=f"{type(error).__name__}: {error}"))
    return PrivacyTestReport(test, tuple(results), time.perf_counter() - started)
