"""Where audits put ledgers that nobody needs afterwards: they make thousands."""

import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 -- the folder in it is fresh and its owner's alone


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A new folder, in memory where the system has such a place; it goes when it is left or forgotten."""
    return tempfile.TemporaryDirectory(prefix="bract-audit-", dir=str(_MEMORY) if _MEMORY.is_dir() else None)
