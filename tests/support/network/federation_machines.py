"""A federation as its operators set it up, by Bract's own commands: each on a machine of a bed."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.network.network_lab import BRACT, Machine, Program, wait_until
from tests.support.network.tls_decryption import writing_keys_to

PORT = 9443
# Long enough to be no accident where they are found on a wire.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(f"class-{word}" for word in WORDS)


class ServerSide:
    """The server's operator.

    Args:
        machine: Where the server runs.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine, self.folder = machine, machine.folder / "federation"
        self.program: Program | None = None

    @property
    def authority(self) -> Path:
        """What every client gets a copy of."""
        return self.folder / "ca.pem"

    def init(self) -> None:
        """Make the server's folder."""
        name = ["--name", self.machine.address, "--port", str(PORT)]
        self.machine.check([*BRACT, "server", "init", self.folder, *name])

    def start(self) -> Program:
        """Run the server until it listens."""
        self.program = self.machine.popen([*BRACT, "server", "start", self.folder])
        wait_until(lambda: self.machine.listens(PORT), seconds=60, what="starting the server", programs=[self.program])
        return self.program

    def admit(self, client: "ClientSide") -> None:
        """Let a client take part."""
        self.machine.check([*BRACT, "server", "admit", client.public_key, "--name", client.name, *self._here])

    def revoke(self, client: "ClientSide") -> None:
        """Cut a client off."""
        self.machine.check([*BRACT, "server", "revoke", client.name, *self._here])

    @property
    def _here(self) -> list[str | Path]:
        return ["--server", self.folder]

    def clients(self) -> list[dict[str, Any]]:
        """What `bract server list` says of each client."""
        said = self.machine.check([*BRACT, "server", "list", *self._here, "--json"])
        return list(json.loads(said)["clients"])

    def online(self) -> set[str]:
        """Names of the clients whose nodes are there."""
        return {str(client["name"]) for client in self.clients() if client["status"] == "online"}

    def wait_for(self, clients: "Sequence[ClientSide]", *, seconds: float = 60.0) -> None:
        """Wait until all of these have connected, and the server says so too."""
        programs = [client.program for client in clients if client.program is not None]
        wait_until(
            lambda: all(client.connected for client in clients), seconds=seconds, what="connecting", programs=programs
        )
        assert {client.name for client in clients} <= self.online()

    def run(self, out: Path, settings: Mapping[str, object]) -> Program:
        """Begin a run over the clients."""
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return self.machine.popen([*BRACT, "run", self.folder, "--out", out, *words])

    def resume(self, out: Path) -> Program:
        """Go on with a run."""
        return self.machine.popen([*BRACT, "run", self.folder, "--resume", out])


class ClientSide:
    """A client's operator.

    Args:
        machine: Where the client runs.
        name: What the server calls the client; the machine's name if left out.
    """

    def __init__(self, machine: Machine, name: str = "") -> None:
        self.machine, self.name = machine, name or machine.name
        self.folder = machine.folder / "client"
        self.program: Program | None = None

    @property
    def public_key(self) -> Path:
        """What the server admits."""
        return self.folder / "node.pub"

    @property
    def ledger(self) -> Path:
        """The holder's ledger on this machine."""
        return self.machine.home / "holder" / "ledger.sqlite"

    def begin_init(self, images: Path, server: ServerSide) -> Program:
        """Begin to make the client's folder."""
        address = f"{server.machine.address}:{PORT}"
        command = [*BRACT, "client", "init", self.folder, "--data", images, "--name", self.name]
        return self.machine.popen([*command, "--server", address, "--authority", server.authority])

    def policy(self, **lines: str) -> None:
        """Set lines of the policy file, in TOML: `max_epsilon="4.0"`."""
        _set_lines(self.folder / "policy.toml", lines)

    def setting(self, **lines: str) -> None:
        """Set lines of the client's own settings, in TOML."""
        _set_lines(self.folder / "client.toml", lines)

    def start(self) -> Program:
        """Begin to answer the server. The keys of its connections are written down: see `tls_decryption`."""
        self.program = self.machine.popen([*BRACT, "client", "start", self.folder], writing_keys_to(self.tls_keys))
        return self.program

    @property
    def tls_keys(self) -> Path:
        """Secrets of its connections with the server."""
        return self.machine.folder / "tls-keys.txt"

    @property
    def connected(self) -> bool:
        """Whether it has said that it reached the server, since it was last started."""
        return self.program is not None and "Connected to" in self.program.text()

    def revive(self) -> bool:
        """Start it again if it has ended, as a service manager would; says whether it had.

        Flower refuses a node that was killed for up to a minute: until the heartbeats of the killed one are missed.
        """
        ended = self.program is not None and not self.program.runs
        if ended and self.program is not None:
            self.program.kill()
            self.start()
        return ended

    def tail(self) -> str:
        """The end of what the client has said since it was last started."""
        return "" if self.program is None else self.program.tail()


def _set_lines(file: Path, lines: Mapping[str, str]) -> None:
    wanted = {name.replace("_", "-"): value for name, value in lines.items()}
    kept = [line for line in file.read_text().splitlines() if line.partition("=")[0].strip() not in wanted]
    file.write_text("\n".join([*kept, *(f"{name} = {value}" for name, value in wanted.items()), ""]))


def make_clients(clients: Sequence[ClientSide], folders: Sequence[Path], server: ServerSide) -> None:
    """`bract client init` for each, two at a time, then the server admits them."""
    for pair in (clients[at : at + 2] for at in range(0, len(clients), 2)):
        made = [client.begin_init(folders[clients.index(client)], server) for client in pair]
        for program in made:
            assert program.wait(seconds=120) == 0, program.text()
    for client in clients:
        server.admit(client)


def one_manifest(parts: Path, names: Sequence[str]) -> Path:
    """All clients' folders as one table, for a simulation over the very images in their order.

    Args:
        parts: From `bract data partition`.
        names: Of the clients, in the order of their folders.
    """
    rows = []
    for folder, name in zip(sorted(parts.glob("client-*")), names, strict=True):
        for part in ("train", "test"):
            files = [file for label in sorted((folder / part).iterdir()) for file in sorted(label.iterdir())]
            rows += [(str(file.relative_to(parts)), file.parent.name, name, part) for file in files]
    with (parts / "all.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "client", "split"])
        writer.writerows(rows)
    return parts / "all.csv"
