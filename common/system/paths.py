"""The folders of Bract's own files."""

import os
from collections.abc import Collection
from pathlib import Path

# Files by which a folder of results is known: of a run, of `bract data partition`, of an attack.
_MARKERS = (
    {"config.toml", "run-id.txt"},
    # A run of 0.1.0 has no file of its id.
    {"config.toml", "privacy.json"},
    {"partition.json", "classes.txt"},
    {"membership.json"},
    {"empirical.json"},
)


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


def holds_results(file_names: Collection[str]) -> bool:
    """Return whether a folder with files of these names was written by Bract.

    >>> holds_results(["config.toml", "run-id.txt"]), holds_results(["config.toml", "1.png"])
    (True, False)
    """
    return any(marker.issubset(file_names) for marker in _MARKERS)
