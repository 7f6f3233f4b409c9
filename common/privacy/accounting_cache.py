"""Figures that depend on public constants alone, remembered on disk: each is computed once on a machine.

A file of lines below `$BRACT_HOME/cache/accounting`, only ever appended to and closed to
everybody but its owner. An audit computes everything anew.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from common.system.paths import cache_folder

_FORMAT = 1
_lock = threading.Lock()


class _Figures:
    """Key -> value, as this and other processes have written them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, float] = {}
        self._read = 0

    def get(self, key: str) -> float | None:
        if key not in self._known:
            self._refresh()
        return self._known.get(key)

    def _refresh(self) -> None:
        if not self._file.is_file():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read()
        whole = lines[: lines.rfind(b"\n") + 1]  # the last line may still be being written
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                key, value = json.loads(line)
                self._known[key] = float(value)
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue  # half a line that a killed process left: its figure is computed anew

    def put(self, key: str, value: float) -> None:
        self._known[key] = value
        handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "ab") as stream:
            stream.write(f"\n{json.dumps([key, value])}\n".encode())


@cache
def _figures(folder: Path) -> _Figures:
    return _Figures(folder / "figures.jsonl")


@cache
def _versions() -> tuple[str, str]:
    return version("dp-accounting"), version("opacus")


def cached_figure(kind: str, key: object, compute: Callable[[], float], *, fresh: bool = False) -> float:
    """A figure that an earlier call with the same key found, else computed and kept.

    Args:
        kind: What is computed.
        key: All that it depends on besides the accounting libraries' versions; its `repr` counts.
        compute: Computes it.
        fresh: Compute it anew and keep nothing.
    """
    if fresh:
        return compute()
    name = hashlib.sha256(repr((_FORMAT, _versions(), kind, key)).encode()).hexdigest()[:32]
    known: float | None = None
    with contextlib.suppress(OSError), _lock:  # a folder that cannot be used costs time, nothing else
        known = _figures(cache_folder("accounting")).get(name)
    if known is not None:
        return known
    value = compute()
    with contextlib.suppress(OSError), _lock:
        _figures(cache_folder("accounting")).put(name, value)
    return value
