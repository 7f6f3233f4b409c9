"""The folders of Bract's own files."""

import os
from pathlib import Path


def bract_home() -> Path:
    """Return the folder `$BRACT_HOME`, by default `~/.bract`."""
    return Path(os.environ.get("BRACT_HOME") or Path.home() / ".bract")


def cache_folder(*names: str) -> Path:
    """Return a folder below `$BRACT_HOME/cache`, made if it is missing.

    Only its owner can read it, because the caches hold images and labels.
    """
    bract_home().mkdir(parents=True, exist_ok=True)
    folder = bract_home() / "cache"
    folder.mkdir(exist_ok=True, mode=0o700)
    for name in names:
        folder = folder / name
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder
