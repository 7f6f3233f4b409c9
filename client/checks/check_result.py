"""Result of one check of a client, with its remedy."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """Line of `bract client check`.

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
    """Return a finding that needs no action."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str) -> Finding:
    """Return a warning.

    The client can start, but the operator should act.
    """
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    """Return a failure.

    The client cannot start before the operator acts.
    """
    return Finding(check, "FAIL", found, remedy)
