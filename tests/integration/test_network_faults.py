"""Kills, cut cables, full disks and wrong clocks: a run ends or is resumed, and no ledger ever comes up short."""

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.ledger.audit.audit import audit_ledger, kept_heads
from server.audit.audit import audit_run
from server.rounds.waiting import read_wait
from tests.support.clients.own_clients import CLASSES, write_images
from tests.support.network.federation_machines import PORT, ClientSide, ServerSide, make_clients
from tests.support.network.network_lab import Bed, Disk, Program, Relay, machines, needs, wait_until

SETTINGS: dict[str, object] = {
    "data.classes": ",".join(CLASSES),
    "data.image-size": 64,
    "training.local-epochs": 1,
    "training.batch-size": 16,
    "privacy.noise-multiplier": 2.0,
    "round-deadline": 30,
}
IMAGES = 60


@contextmanager
def federation(
    root: Path, names: Sequence[str], clocks: Sequence[str] = ()
) -> Iterator[tuple[Bed, ServerSide, list[ClientSide]]]:
    """A server that runs, and clients that it has admitted and that have not been started."""
    with machines(root, ["server", *names], clocks=clocks) as bed:
        server, clients = ServerSide(bed["server"]), [ClientSide(bed[name]) for name in names]
        folders = [
            write_images(root / f"images-{number}", range(IMAGES * number, IMAGES * (number + 1)))
            for number in range(len(names))
        ]
        server.init()
        server.start()
        make_clients(clients, folders, server)
        yield bed, server, clients


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The run's rounds so far; a last line that is half written is left out."""
    file = run / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []


def status_of(run: Path) -> str:
    file = run / "summary.json"
    return str(json.loads(file.read_text())["status"]) if file.is_file() else "not started"


def rounds_in(ledger: Path, kind: str) -> set[int]:
    """Rounds of training that a ledger has reserved or committed, read while others write to it."""
    if not ledger.is_file():
        return set()
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10.0)) as connection:
        events = connection.execute("SELECT event FROM entry WHERE kind = ?", (kind,)).fetchall()
    return {event["round"] for (text,) in events if (event := json.loads(text)).get("release") == "train"}


def check_books(run: Path, server: ServerSide, clients: Sequence[ClientSide]) -> Counter[str]:
    """Every ledger verifies against the server's heads, and holds every update that the server has used.

    Returns:
        By client, how many of its updates were aggregated.
    """
    used: Counter[str] = Counter()
    for line in lines_of(run):
        took_part = [] if line.get("skipped") else [one for one in clients if one.name not in line["failures"]]
        assert line.get("skipped") or len(took_part) == line["clients"], line
        for client in took_part:
            assert line["round"] in rounds_in(client.ledger, "commit"), f"{client.name} is short of {line}"
            used[client.name] += 1
    for client in clients:
        for heads in (run / "heads.jsonl", server.machine.home / "server" / "heads.jsonl"):
            report = audit_ledger(client.ledger, kept_heads(heads))
            assert (report.verdict, report.remarks.doubts) == ("verified", []), client.name
        assert rounds_in(client.ledger, "commit") <= rounds_in(client.ledger, "reserve")
    assert audit_run(run).remarks.doubts == []
    return used


def missing_in(run: Path) -> list[str]:
    """Whom the run says that it waits for."""
    found = read_wait(run)
    return [] if found is None else [one.name for one in found[0].pending]


@pytest.mark.slow
def test_a_run_survives_a_client_killed_in_training_and_the_server_killed_between_rounds(tmp_path: Path) -> None:
    needs("ip", "tc")
    with federation(tmp_path, ["ward-1", "ward-2"]) as (_, server, clients):
        first, run = clients[0], server.machine.folder / "run"
        for client in clients:
            client.start()
        server.wait_for(clients)
        program = server.run(run, SETTINGS | {"num-clients": 2, "num-rounds": 2, "min-clients": 1, "round-deadline": 5})

        wait_until(
            lambda: rounds_in(first.ledger, "reserve"), seconds=120, what="the first reservation", programs=[program]
        )
        assert first.program is not None
        first.program.kill()
        wait_until(lambda: "ward-1" in missing_in(run), seconds=60, what="naming the killed client")
        wait_until(lambda: lines_of(run), seconds=120, what="the first round", programs=[program])
        assert server.program is not None
        server.program.kill()
        wait_until(lambda: not program.runs, seconds=60, what="noticing that the server is gone")
        assert status_of(run) != "complete"

        server.start()
        first.start()
        resumed = server.resume(run)
        wait_until(lambda: not first.revive() and not resumed.runs, seconds=180, what="going on")

        assert resumed.wait(seconds=10) == 0, resumed.text()
        assert (status_of(run), len(lines_of(run))) == ("complete", 2), resumed.text()
        assert check_books(run, server, clients)["ward-2"] == 2


@dataclass
class Soak:
    """A run under random faults, each undone after a while, the run resumed wherever it stopped."""

    server: ServerSide
    clients: Sequence[ClientSide]
    run: Path
    relay: Relay
    disk: Disk
    chance: random.Random
    undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a line for whoever reads the figures."""
        self.log.append(f"round {len(lines_of(self.run)) + 1}: {text}")

    def later(self, seconds: float, undo: Callable[[], None]) -> None:
        """Undo a fault after some seconds."""
        self.undo.append((time.monotonic() + seconds, undo))

    def settle(self, *, all_of_it: bool = False) -> None:
        """Undo what is due, and start again what has ended, as an operator or a service manager would."""
        now = time.monotonic()
        due = [one for one in self.undo if all_of_it or one[0] <= now]
        self.undo = [one for one in self.undo if one not in due]
        for _, undo in due:
            undo()
        self.counted["clients started again"] += sum(client.revive() for client in self.clients)

    def begin(self, settings: dict[str, object]) -> Program:
        """Begin the run; or go on with it by one command, after the server where that has ended too."""
        if not (self.run / "config.toml").is_file():
            return self.server.run(self.run, settings)
        assert self.server.program is not None
        if not self.server.machine.listens(PORT):
            self.server.program.kill()
            self.server.start()
            self.counted["servers started again"] += 1
        self.counted["resumes"] += 1
        return self.server.resume(self.run)

    def strike(self, kind: str) -> None:
        """One fault, at a client by chance."""
        client = self.chance.choice(self.clients)
        # One client has the relay, another one the disk that can be filled.
        client = {"latency": self.clients[0], "stall": self.clients[0], "cut": self.clients[0]}.get(kind, client)
        client = self.clients[1] if kind == "disk full" else client
        self.counted[kind] += 1
        self.note(f"{kind} ({client.name})")
        getattr(self, f"_{kind.replace(' ', '_')}")(client)

    def _client_kill(self, client: ClientSide) -> None:
        assert client.program is not None
        client.program.kill()

    def _server_kill(self, _: ClientSide) -> None:
        assert self.server.program is not None
        self.server.program.kill()

    def _server_app_kill(self, _: ClientSide) -> None:
        assert self.server.program is not None
        for pid, command in self.server.program.commands().items():
            if "flwr-serverapp" in command:
                os.kill(pid, signal.SIGKILL)

    def _link_down(self, client: ClientSide) -> None:
        client.machine.link_down()
        self.later(60.0, client.machine.link_up)

    def _slow_link(self, client: ClientSide) -> None:
        client.machine.slow("1mbit")
        self.later(30.0, client.machine.fast)

    def _latency(self, _: ClientSide) -> None:
        self.relay.latency(0.2)
        self.later(30.0, lambda: self.relay.latency(0.0))

    def _stall(self, _: ClientSide) -> None:
        self.relay.stall(20.0)

    def _cut(self, _: ClientSide) -> None:
        self.relay.cut()

    def _disk_full(self, _: ClientSide) -> None:
        self.disk.fill()
        self.later(20.0, self.disk.free)

    def _clock_off(self, client: ClientSide) -> None:
        client.machine.shift_clock(self.chance.choice((3600, -3600)))
        self.later(20.0, lambda: client.machine.shift_clock(0))


ALL_KINDS = (
    "client kill",
    "server kill",
    "server app kill",
    "link down",
    "slow link",
    "latency",
    "stall",
    "cut",
    "disk full",
    "clock off",
)
# For a try of some kinds alone: BRACT_FAULTS=2 BRACT_FAULT_KINDS="server kill,disk full".
FAULTS = int(os.environ.get("BRACT_FAULTS", "20"))
KINDS = tuple(filter(None, os.environ.get("BRACT_FAULT_KINDS", "").split(","))) or ALL_KINDS


def faults(chance: random.Random, count: int) -> list[str]:
    """Kinds in a random order, each as often as any other."""
    found: list[str] = []
    while len(found) < count:
        found += chance.sample(KINDS, len(KINDS))
    return found[:count]


@pytest.mark.soak
@pytest.mark.parametrize("seed", [int(seed) for seed in os.environ.get("BRACT_FAULT_SEEDS", "1").split(",")])
def test_a_private_run_ends_right_under_twenty_random_faults(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("ip", "tc", "mount", "cc")
    names, chance, began = [f"ward-{number}" for number in range(1, 5)], random.Random(seed), time.monotonic()
    with federation(tmp_path, names, clocks=names) as (bed, server, clients):
        relay = bed.relay(clients[0].machine, server.machine, PORT)
        soak = Soak(server, clients, server.machine.folder / "run", relay, small_home(clients[1]), chance)
        for client in clients:
            client.start()
        server.wait_for(clients)
        rounds_wanted = FAULTS + 10
        settings = SETTINGS | {"num-clients": 4, "num-rounds": rounds_wanted, "min-clients": 2, "round-deadline": 20}
        left, program = faults(chance, FAULTS), soak.begin(settings)
        wait_until(lambda: lines_of(soak.run), seconds=180, what="the first round", programs=[program])
        struck, rounds = time.monotonic(), 0
        while status_of(soak.run) != "complete" or program.runs:
            assert time.monotonic() < began + 1800, "\n".join([*soak.log, program.text()])
            # One fault a round, so that faults meet rounds; and on and on where rounds do not come.
            waited = time.monotonic() - struck
            if left and (waited > 40 or (waited > 1 and len(lines_of(soak.run)) > rounds)):
                time.sleep(chance.uniform(0.0, 3.0))
                soak.strike(left.pop(0))
                struck, rounds = time.monotonic(), len(lines_of(soak.run))
            soak.settle()
            if not program.runs and status_of(soak.run) != "complete":
                soak.note("the run stopped: " + " ".join(program.text().split())[-200:])
                program = soak.begin(settings)
            time.sleep(0.2)
        soak.settle(all_of_it=True)
        used = check_books(soak.run, server, clients)
        lines = lines_of(soak.run)

    with capsys.disabled():
        print(f"\nseed {seed}: {len(lines)} rounds in {time.monotonic() - began:.0f} s, {FAULTS - len(left)} faults")  # noqa: T201
        print("\n".join(soak.log), dict(soak.counted), "updates used", dict(used), sep="\n")  # noqa: T201
    assert len(lines) == rounds_wanted
    assert not left


def small_home(client: ClientSide) -> Disk:
    """Move a client's home, with what is in it, to a disk that can be filled."""
    home = client.machine.home
    files = [file.relative_to(home) for file in home.rglob("*") if file.is_file()]
    kept = {file: ((home / file).read_bytes(), (home / file).stat().st_mode) for file in files}
    disk = client.machine.small_disk(home, megabytes=24)
    for file, (content, mode) in kept.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / file).write_bytes(content)
        (home / file).chmod(mode)
    return disk
