"""Optional packages of Bract, named by extras."""

import importlib.util
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse


def install_hint(extra: str) -> str:
    """Return the command that installs an extra for the Bract that is running.

    A Bract that was installed from a folder gets its extra from there: there may be no such package at an index.
    """
    place, editable = _installed_from()
    if place is None:
        return f"pip install 'bract[{extra}]'"
    shown = "." if place == Path.cwd() else str(place)
    return f'pip install {"-e " if editable else ""}"{shown}[{extra}]"'


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def _installed_from() -> tuple[Path | None, bool]:
    """Return the folder that Bract was installed from.

    The second value is true if the code is used in place.
    """
    try:
        # PEP 610: pip writes down where a package came from that it did not take from an index.
        origin = json.loads(distribution("bract").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None, False
    url = urlparse(origin.get("url", ""))
    if url.scheme != "file" or "dir_info" not in origin:
        return None, False
    return Path(unquote(url.path)), bool(origin["dir_info"].get("editable"))
