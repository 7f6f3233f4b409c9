"""What one check of a client found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of `bract client check`.

    Attributes:
        check: What was looked at.
        state: `ok`, `warn` (a client may start, somebody should know) or `FAIL` (no good round with this).
        found: What is so.
        remedy: What to do; empty where nothing is to be done.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Somebody should know."""
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Something must be done."""
    return Finding(check, "FAIL", found, remedy)
