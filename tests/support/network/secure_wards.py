"""Clients of a secure sum on machines of their own, and how one of them is stopped at an exact moment.

What a client has done is read from its ledger, its file of secrets and its log, never guessed from a clock.
"""

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.runtime.operator_log import LOG_FILE
from client.secure.roster_file import ROSTER_FILE, policy_lines, read_roster
from client.secure.secrets_file import FOLDER
from client.status.activity import read_activity
from common.secagg.protocol.client import ClientState
from server.state.run_directory import RUN_ID
from tests.support.network.federation_machines import ClientSide
from tests.support.network.network_lab import BRACT, Program, wait_until
from tests.support.network.tls_decryption import decrypted, read_keys
from tests.support.network.wire_capture import Endpoint, frames, tcp_streams
from tests.support.secagg.words_that_leave import Sent, objects_on_wire, sent_in

_SLICE = 0.002
# Of the words of sums with noise in shares, for the models of these tests.
WORD_BITS = 40


def exchange_roster(clients: Sequence[ClientSide], file: Path) -> None:
    """Let each holder show its line and take the roster of all, by Bract's own commands."""
    lines = [client.machine.check([*BRACT, "client", "identity", client.folder]) for client in clients]
    file.write_text("".join(lines))
    for client in clients:
        said = client.machine.check([*BRACT, "client", "roster", client.folder, file])
        wanted = policy_lines(read_roster(client.folder / ROSTER_FILE))
        assert all(line in said for line in wanted), said
        client.policy(**{name.strip(): value.strip() for name, _, value in (line.partition("=") for line in wanted)})


def sent_by(capture: Path, server: Endpoint, clients: Iterable[ClientSide]) -> dict[str, Sent]:
    """Return what each client has sent the server, read from the wire with the keys of its connections.

    Args:
        capture: Of all that crossed, from before the clients' first connection on.
        server: Address and port.
        clients: Everybody that has talked to the server.
    """
    streams = [stream for stream in tcp_streams(frames(capture), server) if stream.target == server]
    found: dict[str, Sent] = {}
    for client in clients:
        own = [stream.payload() for stream in streams if stream.source[0] == client.machine.address]
        keys = read_keys(client.tls_keys)
        objects = (part for payload in own for part in objects_on_wire(decrypted(payload, keys)))
        found[client.name] = sent_in(objects, WORD_BITS)
    return found


@dataclass(frozen=True)
class Ward:
    """One client, as its own machine shows it in one run.

    Attributes:
        client: The client.
        run: The run's folder at the server.
        log_size: Bytes of its log before the run.
        patience: Seconds in which a ledger that is locked must become free.
    """

    client: ClientSide
    run: Path
    log_size: int
    patience: float = 10.0

    @classmethod
    def before(cls, client: ClientSide, run: Path) -> "Ward":
        """Return a client at the beginning of a run."""
        return cls(client, run, len(_log_of(client)))

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def program(self) -> Program:
        assert self.client.program is not None
        return self.client.program

    @property
    def run_id(self) -> str:
        file = self.run / RUN_ID
        return file.read_text().strip() if file.is_file() else ""

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and event of the ledger's entries of the run, read while others write to it."""
        if not self.client.ledger.is_file() or not self.run_id:
            return []
        with closing(
            sqlite3.connect(f"file:{self.client.ledger}?mode=ro", uri=True, timeout=self.patience)
        ) as connection:
            rows = connection.execute(
                "SELECT kind, event FROM entry WHERE json_extract(event, '$.run') = ? ORDER BY seq", (self.run_id,)
            ).fetchall()
        return [(kind, json.loads(event)) for kind, event in rows]

    def charged(self, kind: str, release: str = "train") -> list[int]:
        """Rounds of which a release was reserved or committed, with repetitions if there were any."""
        return [event["round"] for found, event in self.entries() if (found, event.get("release")) == (kind, release)]

    @property
    def notes(self) -> list[str]:
        """Texts of the markers of secure sums."""
        return [str(event["note"]) for kind, event in self.entries() if kind == "note"]

    def opened(self, number: int) -> bool:
        """Whether the ledger has the marker of the round's survivors."""
        return f"secure sum: opened round {number}" in self.notes

    @property
    def secrets(self) -> list[Path]:
        """Files of mask secrets of the run on its disk."""
        return list((self.client.machine.home / "holder" / FOLDER / self.run_id).glob("*")) if self.run_id else []

    def state(self) -> ClientState:
        """Return the secrets that are on its disk."""
        # A process that was killed while it wrote has left a part of another file.
        (file,) = (file for file in self.secrets if not file.name.startswith("."))
        return ClientState.from_bytes(file.read_bytes().partition(b"\n")[2])

    @property
    def task(self) -> str:
        """Label of the message that it answers now."""
        activity = read_activity(self.client.folder)
        return "" if activity is None else activity.task

    def sent(self, label: str) -> bool:
        """Whether its answer to a message has reached the server."""
        _, found, after = _log_of(self.client)[self.log_size :].partition(f" {label}: answered in".encode())
        return bool(found) and b"Sent successfully" in after

    def hold(self) -> None:
        """Stop all its processes; `go_on` lets them run again."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.program.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop_task_when(
        self, label: str, reached: Callable[["Ward"], bool], *, seconds: float, programs: Iterable[Program]
    ) -> int:
        """Stop the process that answers a message at the first moment at which something is true.

        The process runs for two milliseconds at a time, and is looked at while it is stopped. So no moment that lasts
        longer is missed, however busy the processors are.

        Returns:
            Number of the process, which stays stopped.
        """
        wait_until(lambda: label in self.task, seconds=seconds, what=f"{self.name} on {label}", programs=programs)
        deadline, hasty = time.monotonic() + seconds, replace(self, patience=0.0)
        while time.monotonic() < deadline:
            pid = self._task_process()
            if pid is None or not _halt(pid):
                assert label in self.task, f"{self.name} has answered {label} before it was stopped"
                continue
            # A process that was stopped in the middle of a transaction must go on before its ledger can be read.
            with contextlib.suppress(sqlite3.OperationalError):
                if reached(hasty):
                    return pid
            os.kill(pid, signal.SIGCONT)
            time.sleep(_SLICE)
        raise AssertionError(f"{self.name} on {label} took more than {seconds:.0f} s\n{self.program.tail()}")

    def _task_process(self) -> int | None:
        launcher = self.program.process.pid
        for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"supernode_main" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None


def _halt(pid: int) -> bool:
    """Stop a process and wait until it has stopped; says whether it was there."""
    try:
        os.kill(pid, signal.SIGSTOP)
        while (status := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
            if status in "ZX":
                return False
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def _log_of(client: ClientSide) -> bytes:
    file = client.folder / LOG_FILE
    return file.read_bytes() if file.is_file() else b""
