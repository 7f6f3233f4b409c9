"""Separate machines on one: each with an address, a clock, a disk and a cable of its own.

    needs("ip", "tc", "tcpdump")                        # in a fixture: skips, or in CI fails, where it cannot work
    with machines(tmp_path, ["server", "ward-1"]) as bed:
        bed.capture(tmp_path / "wire.pcap")             # before the first program; see `wire_capture.check_wire`
        server, ward = bed["server"], bed["ward-1"]     # 10.77.0.1 and 10.77.0.2
        program = server.popen([*BRACT, "server", "start", ...])
        wait_until(lambda: server.listens(9443), seconds=60, programs=[program])
        done = server.run([*BRACT, "run", ...], seconds=120)
        ward.link_down(); ward.link_up(); ward.slow("1mbit"); ward.fast()
        ward.shift_clock(3600)                          # of a machine in `clocks`
        relay = bed.relay(ward, server, 9443)           # before the machine's first connection
        relay.latency(0.2); relay.stall(30); relay.cut()
        disk = ward.small_disk(ward.home, megabytes=8); disk.fill(); disk.free()   # before its first program

The bridge is in a namespace of its own, so beds of several test processes do not meet, and nothing of the host is
touched. Each machine has a BRACT_HOME (`machine.home`). A program is ended with everything that it started, also what
left its process group; leaving the bed ends all programs, removes the namespaces and disks, and a later bed removes
what a killed test process left behind.
"""

import contextlib
import itertools
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.network.federation import environment
from tests.support.network.namespaces import (
    bridge,
    ip,
    limit,
    namespace,
    needs,
    plug,
    remove_left_behind,
    small_disk,
    tool,
)
from tests.support.network.programs import MARK, Program, wait_until
from tests.support.network.shifted_clock import ShiftedClock
from tests.support.paths import ROOT

__all__ = ["BRACT", "Bed", "Disk", "Machine", "Program", "Relay", "machines", "needs", "wait_until"]

BRACT = (sys.executable, "-m", "bract")
_LISTENING = "0A"


@dataclass
class Machine:
    """One machine of a bed.

    Attributes:
        name: What a test calls it.
        address: Its IPv4 address.
        folder: For what it keeps; `home` is in it.
        namespace: Name of its network namespace.
        hub: Namespace of the bridge.
        port: Its port at the bridge.
        clock: If it can be shifted.
    """

    name: str
    address: str
    folder: Path
    namespace: str
    hub: str
    port: str
    clock: ShiftedClock | None
    stack: ExitStack
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def home(self) -> Path:
        """Its BRACT_HOME."""
        return self.folder / "home"

    def popen(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> Program:
        """Start a command on this machine; it ends with the bed at the latest.

        Args:
            command: As for subprocess; run in the project's folder.
            env: More environment.
            log: Where both streams go; a file of its own in the machine's folder if left out.
        """
        words = [str(word) for word in command]
        log = log or self.folder / f"program-{next(self._numbers)}.log"
        mark = secrets.token_hex(8)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [tool("ip"), "netns", "exec", self.namespace, *words],
                cwd=ROOT,
                env=self.environment() | dict(env or {}) | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        program = Program(f"{self.name}: {' '.join(words[-6:])}", process, log, mark)
        self.stack.callback(program.kill)
        return program

    def run(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None = None, *, seconds: float = 60.0
    ) -> Program:
        """Run a command to its end; its exit status is in `process.returncode`, its words in `text()`."""
        program = self.popen(command, env)
        program.wait(seconds=seconds)
        return program

    def check(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None = None, *, seconds: float = 60.0
    ) -> str:
        """Run a command that must succeed, and give what it says."""
        program = self.run(command, env, seconds=seconds)
        assert program.process.returncode == 0, f"{program.name} ended with {program.process.returncode}:\n" + (
            program.text()
        )
        return program.text()

    def environment(self) -> dict[str, str]:
        """What its programs start with: a home of its own, Flower kept quiet, the clock."""
        plain = environment(self.folder, BRACT_HOME=str(self.home))
        return plain | (self.clock.environment if self.clock else {})

    def shift_clock(self, seconds: int) -> None:
        """Set its clock ahead (or back) of the real one, also for programs that run."""
        assert self.clock is not None, f"name {self.name} in `clocks`"
        self.clock.shift(seconds)

    def listens(self, port: int) -> bool:
        """Whether a program on it accepts connections at a port."""
        tables = ip("netns", "exec", self.namespace, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        rows = [row.split() for row in tables.splitlines()]
        return any(row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port for row in rows)

    def link_down(self) -> None:
        """Pull its cable out of the bridge."""
        ip("-n", self.hub, "link", "set", self.port, "down")

    def link_up(self) -> None:
        """Put the cable back."""
        ip("-n", self.hub, "link", "set", self.port, "up")

    def slow(self, rate: str = "1mbit") -> None:
        """Let its cable carry so much a second, either way."""
        limit(self.namespace, "eth0", rate)
        limit(self.hub, self.port, rate)

    def fast(self) -> None:
        """Take `slow` back."""
        limit(self.namespace, "eth0", None)
        limit(self.hub, self.port, None)

    def small_disk(self, folder: Path, *, megabytes: int) -> "Disk":
        """A disk of its own at a folder, which can be filled; for programs that start later."""
        return Disk(self.stack.enter_context(small_disk(folder, megabytes)))


@dataclass(frozen=True)
class Disk:
    """A small disk of a machine."""

    folder: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "ballast").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"\0" * 4096)

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink(missing_ok=True)


class Relay:
    """What stands between a machine and the server, see `tcp_relay`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the relay has ended"
        return dict(json.loads(line))

    def _ask(self, **wish: object) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def latency(self, seconds: float) -> None:
        """Delay what passes from now on, either way."""
        self._ask(latency=seconds)

    def stall(self, seconds: float) -> None:
        """Pass nothing on for a while; connections stay."""
        self._ask(stall=seconds)

    def cut(self) -> None:
        """Break all connections that there are."""
        self._ask(cut=True)

    def passed(self) -> int:
        """Bytes that have passed, both ways."""
        return self._ask()["passed"]


class Bed:
    """Machines by name, and what is between them."""

    def __init__(self, found: Mapping[str, Machine], hub: str, stack: ExitStack) -> None:
        self._machines, self._hub, self._stack = dict(found), hub, stack
        self._relays = itertools.count(200)

    def __getitem__(self, name: str) -> Machine:
        return self._machines[name]

    def capture(self, file: Path) -> "subprocess.Popen[str]":
        """Write down every frame from now on, until `end_capture` or the end of the bed."""
        command = [
            tool("tcpdump"),
            "-i",
            "br0",
            "--immediate-mode",
            "-s",
            "0",
            "-B",
            "32768",
            "-U",
            "-Z",
            "root",
            "-w",
            str(file),
        ]
        started = subprocess.Popen(
            [tool("ip"), "netns", "exec", self._hub, *command], stderr=subprocess.PIPE, text=True
        )
        self._stack.callback(_end_quietly, started)
        assert started.stderr is not None
        said = started.stderr.readline()
        while "listening on" not in said:
            assert said, "tcpdump did not start"
            said = started.stderr.readline()
        return started

    def end_capture(self, started: "subprocess.Popen[str]") -> None:
        """Stop writing down; what was missed fails the test."""
        time.sleep(0.2)  # tcpdump gets frames in blocks of time
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=10)
        assert "\n0 packets dropped by kernel" in f"\n{said}", said

    def relay(self, machine: Machine, server: Machine, port: int) -> Relay:
        """Let a machine's later connections to a server's port go through a relay.

        The machine gets the server's address on its loopback, where the relay listens; the relay's own network is
        another machine's, `10.77.0.2xx`.
        """
        number = next(self._relays)
        between = self._stack.enter_context(namespace(f"relay {machine.name}"))
        plug(self._hub, between, f"p{number}", f"10.77.0.{number}/24")
        ip("-n", machine.namespace, "address", "add", f"{server.address}/32", "dev", "lo")
        target = f"{server.address}:{port}"
        command = [sys.executable, str(Path(__file__).with_name("tcp_relay.py"))]
        process = subprocess.Popen(
            [tool("ip"), "netns", "exec", between, *command, f"/run/netns/{machine.namespace}", target, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end_quietly, process)
        return Relay(process)


@contextmanager
def machines(folder: Path, names: Sequence[str], *, clocks: Sequence[str] = ()) -> Iterator[Bed]:
    """Machines on one bridge: 10.77.0.1, 10.77.0.2, ... in the order of their names.

    Args:
        folder: Where they keep what they have; a sub-folder each.
        names: The server first, by custom.
        clocks: Names of those whose clock can be shifted.
    """
    remove_left_behind()
    with ExitStack() as stack:
        hub = stack.enter_context(bridge())
        found: dict[str, Machine] = {}
        for number, name in enumerate(names, start=1):
            own = folder / name
            for made in (own / "home", own / "flwr"):
                made.mkdir(parents=True, exist_ok=True)
            space = stack.enter_context(namespace(name))
            address, clock = f"10.77.0.{number}", ShiftedClock(own) if name in clocks else None
            plug(hub, space, f"p{number}", f"{address}/24")
            found[name] = Machine(name, address, own, space, hub, f"p{number}", clock, stack)
        yield Bed(found, hub, stack)


def _end_quietly(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
