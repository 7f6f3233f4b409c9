"""Quick failure of downloads where there is no network."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse
from urllib.request import getproxies

_PATIENCE = 3.0
_PORTS = {"https": 443, "http": 80}
# Modules that keep the hub's offline mode in a constant once they are imported.
_CONSTANTS = ("huggingface_hub.constants", "datasets.config")
_OFFLINE = "HF_HUB_OFFLINE"


def hub_url() -> str:
    """Return the address of the Hugging Face hub."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@contextmanager
def quick_failure(url: str) -> Iterator[None]:
    """Let downloads in the block fail at once if their server cannot be reached.

    Files that were downloaded before are found all the same. Without this, each library tries for minutes.
    """
    if os.environ.get(_OFFLINE) or is_reachable(url):
        yield
        return
    timeout, places = socket.getdefaulttimeout(), [sys.modules[name] for name in _CONSTANTS if name in sys.modules]
    before = [getattr(place, _OFFLINE, None) for place in places]
    os.environ[_OFFLINE] = "1"
    socket.setdefaulttimeout(_PATIENCE / 3)
    for place in places:
        setattr(place, _OFFLINE, True)
    try:
        yield
    finally:
        del os.environ[_OFFLINE]
        socket.setdefaulttimeout(timeout)
        for place, value in zip(places, before, strict=True):
            setattr(place, _OFFLINE, value)


def is_reachable(url: str) -> bool:
    """Return whether a server answers within three seconds.

    Where the environment names a proxy on the way to it, the proxy must answer.
    """
    scheme = urlparse(url).scheme
    way = urlparse(getproxies().get(scheme) or url)
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((way.hostname or "", way.port or _PORTS.get(way.scheme, 443)), _PATIENCE).close()
        except (OSError, ValueError):
            return
        answers.append(True)

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answers)
