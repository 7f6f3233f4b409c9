"""A cache on disk for figures that depend on public constants alone.

Each figure is computed once on a machine. The cache is a file of lines in `$BRACT_HOME/cache/accounting`. Processes
only append to it, and only its owner can read it.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from common.system.paths import bract_home, cache_folder

_FORMAT = 1
_FOLDER = "accounting"
_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


class FigureCache:
    """Figures in memory and in a file that all processes of a user share.

    Several threads may use it. A file that cannot be used costs time and does nothing else.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[str | None, str], _FigureFile] = {}
        self._lock = threading.Lock()
        self._clear_memory: list[Callable[[], None]] = []

    def get_or_compute(self, kind: str, key: object, compute: Callable[[], float], *, bypass: bool = False) -> float:
        """Return the figure of a key, computing it if no call has before.

        `key` is all that the figure depends on besides the accounting libraries' versions; its `repr` counts. With
        `bypass` the figure is computed anew, and the cache is neither read nor written.
        """
        if bypass:
            return compute()
        name = hashlib.sha256(repr((_FORMAT, _versions(), kind, key)).encode()).hexdigest()[:32]
        known: float | None = None
        with contextlib.suppress(OSError), self._lock:
            known = self._file().get(name)
        if known is not None:
            return known
        value = compute()
        with contextlib.suppress(OSError), self._lock:
            self._file().put(name, value)
        return value

    def in_memory(self, max_results: int) -> Callable[[Callable[_Params, _Result]], Callable[_Params, _Result]]:
        """Return a decorator that keeps a function's newest results in memory."""

        def decorate(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
            cached = lru_cache(max_results)(function)
            self._clear_memory.append(cached.cache_clear)
            return cast("Callable[_Params, _Result]", cached)

        return decorate

    def clear(self) -> None:
        """Forget everything in memory and leave the files as they are."""
        self._files.clear()
        for clear in self._clear_memory:
            clear()

    def _file(self) -> "_FigureFile":
        # A run asks thousands of times, so the path is put together once for each home.
        key = os.environ.get("BRACT_HOME"), os.path.expanduser("~")
        if key not in self._files:
            self._files[key] = _FigureFile(bract_home() / "cache" / _FOLDER / "figures.jsonl")
        return self._files[key]


class _FigureFile:
    """The figures of one file by name, as this and other processes wrote them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, float] = {}
        self._read = 0

    def get(self, name: str) -> float | None:
        if name not in self._known:
            self._refresh()
        return self._known.get(name)

    def _refresh(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read()
        # Another process may still be writing the last line.
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                name, value = json.loads(line)
                self._known[name] = float(value)
            except (ValueError, TypeError, OverflowError, RecursionError):
                # A killed process left half a line. Its figure is computed again.
                continue

    def put(self, name: str, value: float) -> None:
        self._known[name] = value
        # The folder may be missing or have been deleted since the last figure.
        cache_folder(_FOLDER)
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "ab") as stream:
            # The line break in front ends half a line that a killed process may have left.
            stream.write(f"\n{json.dumps([name, value])}\n".encode())


@cache
def _versions() -> tuple[str, str]:
    return version("dp-accounting"), version("opacus")
