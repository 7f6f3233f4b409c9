"""The folders of Bract's own files with the rights of this user."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from common.errors import ConfigError
from common.system.files import make_folder

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
    make_folder(bract_home())
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


def check_cache() -> None:
    """Refuse a cache that this user may not write.

    Call it early, because hours may be spent on what the cache should keep.

    Raises:
        ConfigError: `$BRACT_HOME`, its cache or something in the cache is closed to this user or not a folder.
    """
    home = bract_home().absolute()
    # Where nothing is there yet, the nearest folder that exists must let this user make it.
    top = next(folder for folder in (home / "cache", home, *home.parents) if os.path.exists(folder))
    places = _all_below(top) if top == home / "cache" else iter([top])
    if not top.is_dir():
        raise ConfigError(f"{top} is not a folder: set BRACT_HOME to one")
    closed = next((place for place in places if not os.access(place, os.R_OK | os.W_OK)), None)
    if closed is not None:
        raise ConfigError(
            f"{closed} cannot be read and written (permission denied), and Bract keeps in {home / 'cache'} what it "
            "computes: give this user the right (was Bract once run as root?), or set BRACT_HOME to another folder"
        )


def _all_below(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def check_output(folder: Path) -> None:
    """Refuse a folder for results that this user may not make or write.

    Raises:
        ConfigError: The folder, or the nearest one above that exists, is closed to this user.
    """
    whole = folder.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.path.exists(place))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written: {nearest} is closed to this user (permission denied)")


def closed_part(path: Path) -> Path | None:
    """Return the file or folder that keeps this user from reading a path.

    The result is None for a path that can be read, and for one that is not there.
    """
    whole = path.absolute()
    try:
        for place in (*reversed(whole.parents), whole):
            os.stat(place)
    except PermissionError:
        return place.parent
    # Missing, or text that is not a path: that is another fault.
    except (OSError, ValueError):
        return None
    return None if os.access(whole, os.R_OK | (os.X_OK if whole.is_dir() else 0)) else path
