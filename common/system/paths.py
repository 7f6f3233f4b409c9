"""Folders that Bract keeps its own files in."""

import os
from pathlib import Path


def bract_home() -> Path:
    """Where caches live: `$BRACT_HOME`, else `~/.bract`."""
    return Path(os.environ.get("BRACT_HOME") or Path.home() / ".bract")


def cache_folder(*names: str) -> Path:
    """A folder below `$BRACT_HOME/cache`, made if need be, closed to everybody but its owner."""
    bract_home().mkdir(parents=True, exist_ok=True)
    folder = bract_home() / "cache"
    folder.mkdir(exist_ok=True, mode=0o700)
    for name in names:
        folder = folder / name
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder
