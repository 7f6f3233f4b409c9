"""Commands of an ordinary user, whom file modes stop, also where root runs the tests.

One process runs all commands of a test module, because importing everything takes seconds.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.paths import ROOT

_CAPABILITY_VERSION = 0x20080522  # of the kernel's structure with two words of each set
_MODES_COUNT_NOT = (1 << 1) | (1 << 2) | (1 << 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@dataclass(frozen=True)
class Done:
    """What a command printed, its exit code, and the name of an exception that was not shown as text."""

    output: str
    exit_code: int
    exception: str


class OrdinaryUser:
    """A process that runs commands one by one."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies

    def run(self, *arguments: str | Path, home: Path, folder: Path) -> Done:
        """Run `bract` with arguments, with a `$BRACT_HOME` and in a working folder."""
        request = {"arguments": [str(item) for item in arguments], "home": str(home), "folder": str(folder)}
        print(json.dumps(request), file=self._requests, flush=True)
        return Done(**json.loads(self._replies.readline()))


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """Start the process and end it with the block."""
    command = [sys.executable, "-m", "tests.support.ordinary_user"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield OrdinaryUser(process.stdin, process.stdout)
        process.stdin.close()


def _call(name: str, sets: "ctypes.Array[ctypes.c_uint32]") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    if getattr(libc, name)(header, sets):
        raise OSError(ctypes.get_errno(), name)


def _rights() -> "ctypes.Array[ctypes.c_uint32]":
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for higher numbers
    _call("capget", sets)
    return sets


def _give_up_rights() -> None:
    """Let file modes stop this process although it is root's."""
    sets = _rights()
    for index in range(3):
        sets[index] &= ~_MODES_COUNT_NOT & 0xFFFFFFFF
    _call("capset", sets)


@contextmanager
def rights_given_up() -> Iterator[None]:
    """Let file modes stop this thread while the block runs, although it is root's.

    What `os.access` says does not change, because rights that can be taken back count for it.
    """
    sets = _rights()
    before = sets[0]
    sets[0] &= ~_MODES_COUNT_NOT & 0xFFFFFFFF
    _call("capset", sets)
    try:
        yield
    finally:
        sets[0] = before
        _call("capset", sets)


def _serve() -> None:
    from typer.testing import CliRunner

    from bract import app

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request: Mapping[str, object] = json.loads(line)
        os.environ["BRACT_HOME"] = str(request["home"])
        os.chdir(str(request["folder"]))
        done = CliRunner().invoke(app, request["arguments"])
        error = "" if done.exception is None or isinstance(done.exception, SystemExit) else repr(done.exception)
        print(
            json.dumps({"output": done.output, "exit_code": done.exit_code, "exception": error}),
            file=replies,
            flush=True,
        )


if __name__ == "__main__":
    # Threads begin with the rights of the one that starts them.
    if os.geteuid() == 0:
        _give_up_rights()
    _serve()
