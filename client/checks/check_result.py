"""The result of one check of a client."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """A line of `bract client check`.

    Attributes:
        check: Subject of the check.
        state: `ok`, `warn` (the client can start, but the operator should act) or `FAIL` (no round can work).
        found: Facts that the check saw.
        remedy: Action for the operator; empty where none is needed.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Return a warning that lets the client start."""
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Return a failure that keeps every round from working."""
    return Finding(check, "FAIL", found, remedy)
