"""Is there room for the ledger and the caches? A full disk ends a run: what cannot be written down is not sent."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from client.deployment.finding import Finding, fail, ok, warn
from client.site import Site
from common.config import bract_home

_LEAST = 100_000_000
_ENOUGH = 1_000_000_000
_BYTES_AN_IMAGE = 1280 * 4 + 36  # a row of features of the default backbone, and its record in the index


def check_disk(site: Site) -> Finding:
    """Free space where the client's folder and `$BRACT_HOME` lie."""
    places = {"the client's folder": site.folder, "$BRACT_HOME": bract_home()}
    try:
        free = {name: shutil.disk_usage(_existing(place)).free for name, place in places.items()}
    except OSError as error:
        return fail("disk", f"free space cannot be told ({error.strerror})", "look at the disk: it may be gone")
    name, least = min(free.items(), key=lambda item: item[1])
    found = f"{_size(least)} free for {name} ({places[name]})"
    if least < _LEAST:
        return fail("disk", found, "make room: the ledger must be written before anything may be sent")
    cache = site.num_images * _BYTES_AN_IMAGE
    if least < max(_ENOUGH, cache):
        return warn(
            "disk",
            f"{found}; the cache of features may take {_size(cache)}",
            "make room, or `bract cache` shows what can be cleared",
        )
    return ok("disk", found)


def _existing(place: Path) -> Path:
    parents: Iterable[Path] = (place, *place.parents)
    return next((one for one in parents if one.exists()), place)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
