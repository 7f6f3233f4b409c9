"""Flower's SuperNode as a child process that talks with the server.

It never runs a bundle.
"""

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.client_config import NODE_KEY, Site
from client.runtime.process_lifetime import die_with, kernel_can_tether
from client.runtime.supernode_main import PARENT
from common.errors import ConfigError
from common.system.files import write_atomic

LOG_FILE = "supernode.log"
_LOOPBACK = "127.0.0.1"
_LOG_BYTES = 1_000_000
_ENDING_SECONDS = 10.0


class SuperNode:
    """A running SuperNode.

    Args:
        process: Its process.
        log: File of its log.
        address: Its address for tasks, `host:port`.
        secret: Secret that allows a process to take tasks.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, address: str, secret: bytes) -> None:
        self.address, self.secret = address, secret
        self._process, self._log, self._read = process, log, 0

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process, once it has ended."""
        return self._process.poll()

    def new_lines(self) -> list[str]:
        """Return the lines of its log since the last call."""
        size = self._log.stat().st_size
        if size <= self._read:
            return []
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            whole, end, _ = stream.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        # A client runs for months, and its disk must not fill up.
        if self._read > _LOG_BYTES:
            os.truncate(self._log, 0)
            self._read = 0
        return [line for line in whole.decode("utf-8", "replace").splitlines() if line.strip()]

    def end(self) -> None:
        """End the SuperNode by a signal or, after ten seconds, by force.

        A SuperNode that ends by itself tells the server, which otherwise waits for missed heartbeats.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            try:
                self._process.wait(_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def command_for(site: Site, *, port: int, secret_file: Path) -> list[str]:
    """Return the command line of a client's SuperNode, always with TLS and a key.

    Args:
        site: The client.
        port: TCP port on loopback where the SuperNode offers tasks.
        secret_file: File of the secret that allows a process to take tasks.

    Raises:
        ConfigError: The folder's name has characters that the command line cannot carry.
    """
    if set(str(site.folder)) & set("\"'\\\n\r"):
        raise ConfigError(f"{site.folder}: a client's folder cannot have quotes, backslashes or line ends in its name")
    options = {
        "--superlink": site.superlink,
        "--root-certificates": str(site.authority_file),
        "--auth-supernode-private-key": str(site.key_file),
        "--node-config": f'{NODE_KEY}="{site.folder}"',
        "--isolation": "process",
        "--host": _LOOPBACK,
        "--port": str(port),
        "--superexec-auth-secret-file": str(secret_file),
    }
    program = [sys.executable, "-P", "-m", "client.runtime.supernode_main"]
    return [*program, *(word for pair in options.items() for word in pair)]


@contextmanager
def supernode_of(site: Site) -> Iterator[tuple[SuperNode, str]]:
    """Run a client's SuperNode until the block or this process ends.

    Yields:
        The SuperNode, and the command that started it.

    Raises:
        ConfigError: See `command_for`.
    """
    home = site.folder / "flwr"
    home.mkdir(exist_ok=True, mode=0o700)
    home.chmod(0o700)
    port, secret = _free_port(), secrets.token_bytes(32)
    secret_file = home / "superexec.secret"
    write_atomic(secret_file, secret, durable=False, mode=0o600)
    command, log = command_for(site, port=port, secret_file=secret_file), home / LOG_FILE
    log.write_bytes(b"")
    try:
        node = SuperNode(_start(command, home, log), log, f"{_LOOPBACK}:{port}", secret)
        try:
            yield node, shlex.join(command)
        finally:
            node.end()
    finally:
        secret_file.unlink(missing_ok=True)


def _start(command: list[str], home: Path, log: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOG_LEVEL": "INFO",
        "PYTHONUNBUFFERED": "1",
    }
    parent, tethered = os.getpid(), kernel_can_tether()
    if not tethered:
        environment[PARENT] = str(parent)
    with log.open("ab") as stream:
        return subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # A terminal's Ctrl-C is for the launcher, which ends tasks first.
            start_new_session=True,
            preexec_fn=(lambda: die_with(parent)) if tethered else None,  # noqa: PLW1509
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
