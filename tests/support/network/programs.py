"""Commands that a test runs, ended with everything they started, and what a test waits for."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.network.namespaces import kill_until_gone

MARK = "BRACT_TEST_PROGRAM"


def wait_until(
    condition: Callable[[], object], *, seconds: float, what: str = "", programs: Iterable["Program"] = ()
) -> None:
    """Look until something is true.

    Args:
        condition: Is asked twenty times a second.
        seconds: How long at most.
        what: What is waited for, for the message.
        programs: Must go on meanwhile: one that ends fails the test, with its log.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        for program in programs:
            assert program.runs, f"{program.name} ended with {program.process.returncode}:\n{program.text()}"
        late = time.monotonic() > deadline
        assert not late, f"{what or 'this'} took more than {seconds:.0f} s\n" + "\n".join(p.tail() for p in programs)
        time.sleep(0.05)


class Program:
    """A running command and everything it has started, started with a mark in its environment."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, mark: str) -> None:
        self.name, self.process, self.log, self._mark = name, process, log, mark

    @property
    def runs(self) -> bool:
        """Whether the command itself has not ended."""
        return self.process.poll() is None

    def pids(self) -> list[int]:
        """Numbers of all its processes, found by a mark in their environment: also of those it let go."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def commands(self) -> dict[int, str]:
        """Command line of each of its processes."""
        lines = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return lines

    def kill(self) -> None:
        """kill -9, at once, of it and of everything it has started."""
        kill_until_gone(self.pids)
        self.process.wait()

    def end(self, *, seconds: float = 10.0) -> int:
        """Ask it to end, then see to it; gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.kill()
        return int(self.process.returncode)

    def wait(self, *, seconds: float) -> int:
        """Let it come to its end, and what it started with it; gives its exit status."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} took more than {seconds:.0f} s:\n{self.tail()}") from None
        finally:
            self.kill()
        return int(self.process.returncode)

    def text(self) -> str:
        """What it has said so far, both streams."""
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of what it has said, for messages."""
        return f"--- {self.name}\n" + "\n".join(self.text().splitlines()[-40:])
