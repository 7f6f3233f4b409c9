"""Admit and revoke clients' keys.

Flower's database decides who may take part. The files beside it say who is who, and keep what was revoked; each step
is in an order in which a crash between the two is put right by giving the command again.
"""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError, FederationError
from common.system.files import write_atomic
from common.system.paths import bract_home
from server.deployment.client_keys import PublicKey, check_client_name, read_public_key
from server.deployment.client_list import Client, key_files
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Node, control
from server.rounds.node_registry import NODES_FILE, forget_node


def admit(home: ServerHome, file: Path, name: str | None, *, again: bool = False) -> Client:
    """Let a client take part.

    Guarantee: nothing changes unless all is in order. A key whose file is here but which the server has lost (a new
    database) is admitted again.

    Args:
        home: The server; it must run.
        file: The client's public key.
        name: What it is called here; if left out, the file's stem, or what the client calls itself in a `node.pub`.
        again: Admit a key that was revoked.

    Raises:
        ConfigError: No public key, a name that is not possible or taken, a key that is admitted or was revoked.
        FederationError: The server does not run, or refused.
    """
    key = read_public_key(file)
    called = check_client_name(_own_name(file, key) if name is None else name)
    _check_free(home, called, key)
    was = [stored for stored in key_files(home.revoked) if read_public_key(stored).line == key.line]
    with control(home) as server:
        known = [node for node in server.nodes() if node.pem == key.pem]
        node = _active(known)
        if node is not None and _file(home, called).exists():
            raise ConfigError(f"{called} is admitted already, as node {node.node_id}")
        if (was or len(known) > (node is not None)) and not again:
            raise ConfigError(f"this key was revoked ({key.fingerprint}): --again admits it all the same")
        if node is None and known:
            _forget(home, key)
        node_id = server.register(key, called) if node is None else node.node_id
    write_atomic(_file(home, called), f"{key.line} {called}\n".encode(), durable=True, mode=0o600)
    for stored in was:
        stored.unlink()
    return Client(called, key.fingerprint, node_id, "never seen", "", datetime.now(UTC).isoformat(timespec="seconds"))


def revoke(home: ServerHome, name: str) -> Client:
    """Cut a client off: its node is refused at its next request, within seconds, and cannot come back.

    Args:
        home: The server; it must run.
        name: As `bract server list` shows it.

    Raises:
        ConfigError: There is no such client.
        FederationError: The server does not run, or refused.
    """
    file = _file(home, check_client_name(name))
    if not file.exists():
        names = ", ".join(stored.stem for stored in key_files(home.clients)) or "none"
        raise ConfigError(f"no client is called {name!r}; admitted are: {names}")
    key = read_public_key(file)
    with control(home) as server:
        node = _active([node for node in server.nodes() if node.pem == key.pem])
        if node is not None:
            server.unregister(node.node_id)
            forget_node(bract_home() / "server" / NODES_FILE, node.node_id)  # its name may be another key's from now on
    # A name can be revoked more than once, each time with another key.
    mark = "".join(filter(str.isalnum, key.fingerprint.removeprefix("SHA256:")))[:8]
    write_atomic(home.revoked / f"{name}.{mark}.pub", f"{key.line} {name}\n".encode(), durable=True, mode=0o600)
    file.unlink()
    return Client(name, key.fingerprint, None if node is None else node.node_id, "revoked", "", "")


def _own_name(file: Path, key: PublicKey) -> str:
    """`bract client init` calls every client's file the same, and writes whose it is behind the key."""
    return key.comment.replace(" ", "-") if file.stem == "node" and key.comment else file.stem


def _check_free(home: ServerHome, name: str, key: PublicKey) -> None:
    for stored in key_files(home.clients):
        same = read_public_key(stored).line == key.line
        if same and stored.stem != name:
            raise ConfigError(f"this key is admitted already, as {stored.stem!r}")
        if stored.stem == name and not same:
            raise ConfigError(f"another key is admitted as {name!r}: give --name, or revoke that one first")


def _active(nodes: list[Node]) -> Node | None:
    return next((node for node in nodes if node.status != UNREGISTERED), None)


def _forget(home: ServerHome, key: PublicKey) -> None:
    """Take a revoked key out of Flower's database, which takes each key once and for ever; its node stays revoked."""
    try:
        with closing(sqlite3.connect(home.database, timeout=10.0)) as database, database:
            database.execute(
                "UPDATE node SET public_key = NULL WHERE public_key = ? AND status = ?", (key.pem, UNREGISTERED)
            )
    except sqlite3.Error as error:
        raise FederationError(f"{home.database} keeps the revoked key ({error}): the client makes a new one") from None


def _file(home: ServerHome, name: str) -> Path:
    return home.clients / f"{name}.pub"
