"""Scratch folders for the thousands of ledgers that an audit makes."""

import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 -- the folder made in it is new and only its owner can read it


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """Create a new folder, in memory where the system offers that.

    It is deleted when its `with` block ends, or with the object.
    """
    return tempfile.TemporaryDirectory(prefix="bract-audit-", dir=str(_MEMORY) if _MEMORY.is_dir() else None)
