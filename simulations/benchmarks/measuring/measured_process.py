"""A program that runs a command and writes what it cost, descendants included.

It needs the standard library only and no other module of Bract, so that it weighs nothing beside what it measures.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STOPPING = signal.SIGINT, signal.SIGTERM


def measure(command: list[str]) -> dict[str, float]:
    """Run a command and return its exit code, seconds and peak memory.

    CPU seconds are those of the command and of all its descendants. On Linux that includes daemons which it leaves
    behind, as Ray does. They are ended.
    """
    adopts = sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    for number in _STOPPING:
        signal.signal(number, _stop)
    if adopts:
        # Nothing may go on computing after whoever measures has gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    start = time.perf_counter()
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603
        wall = time.perf_counter() - start
    finally:
        if adopts:
            _end_orphans()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = used.ru_utime + used.ru_stime
    return {"code": code, "wall_seconds": wall, "cpu_seconds": cpu, "peak_mb": used.ru_maxrss * unit / 1e6}


def _stop(*_: object) -> NoReturn:
    # A terminal's Ctrl-C and the program that measures both send a signal. The second one must not cut `_end_orphans`
    # short.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_orphans() -> None:
    """End the processes that were left to this one.

    Waiting for them adds their time to this process's children.
    """
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        try:
            # A child that has ended hands its own children over, so look again.
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    figures = measure(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(figures))
