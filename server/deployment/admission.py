"""Admission and revocation of clients' keys.

Flower's database decides which nodes may connect. The files beside it map keys to client names and keep the revoked
keys. The steps are in an order in which giving the command again repairs a crash between two of them.
"""

from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError
from common.system.files import write_atomic
from common.system.paths import bract_home
from server.deployment.client_keys import PublicKey, check_client_name, read_public_key
from server.deployment.client_list import Client, key_files
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Node, control, forget_key
from server.rounds.node_registry import NODES_FILE, forget_node


def admit(home: ServerHome, file: Path, name: str | None, *, again: bool = False) -> Client:
    """Admit the public key of a client.

    Guarantee: an error changes nothing. A key that has a file here but is missing in Flower's database (for instance
    in a new one) is admitted again.

    Args:
        home: Folder of the server, which must be running.
        file: File of the client's public key.
        name: Name of the client here. By default the file's stem, or for `node.pub` the comment in the file.
        again: Whether to admit a key that was revoked.

    Raises:
        ConfigError: The file does not hold a public key, the name is not allowed or taken, or the key is admitted
            already or was revoked.
        FederationError: The server is not running, or refused.
    """
    key = read_public_key(file)
    client_name = check_client_name(_default_name(file, key) if name is None else name)
    _check_free(home, client_name, key)
    revoked_files = [stored for stored in key_files(home.revoked) if read_public_key(stored).line == key.line]
    with control(home) as server:
        nodes = [node for node in server.nodes() if node.pem == key.pem]
        node = _active(nodes)
        if node is not None and _file(home, client_name).exists():
            raise ConfigError(f"{client_name} is admitted already, as node {node.node_id}")
        # Flower's database remembers a revoked key even where its file was deleted.
        if (revoked_files or len(nodes) > (node is not None)) and not again:
            raise ConfigError(f"this key was revoked ({key.fingerprint}): --again admits it all the same")
        if node is None and nodes:
            forget_key(home.database, key)
        node_id = server.register(key, client_name) if node is None else node.node_id
    write_atomic(_file(home, client_name), f"{key.line} {client_name}\n".encode(), durable=True, mode=0o600)
    for stored in revoked_files:
        stored.unlink()
    admitted = datetime.now(UTC).isoformat(timespec="seconds")
    return Client(client_name, key.fingerprint, node_id, "never seen", "", admitted)


def revoke(home: ServerHome, name: str) -> Client:
    """Revoke the public key of a client.

    Its node is refused from its next request on, within seconds.

    Args:
        home: Folder of the server, which must be running.
        name: Name of the client, as `bract server list` shows it.

    Raises:
        ConfigError: No client has this name.
        FederationError: The server is not running, or refused.
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
            # Another key may be admitted under this name from now on.
            forget_node(bract_home() / "server" / NODES_FILE, node.node_id)
    # A name can be revoked more than once, each time with another key.
    mark = "".join(filter(str.isalnum, key.fingerprint.removeprefix("SHA256:")))[:8]
    write_atomic(home.revoked / f"{name}.{mark}.pub", f"{key.line} {name}\n".encode(), durable=True, mode=0o600)
    # Deleted last, so that after a crash the same command can be given again.
    file.unlink()
    return Client(name, key.fingerprint, None if node is None else node.node_id, "revoked", "", "")


def _default_name(file: Path, key: PublicKey) -> str:
    """Return the name of a client from its key file.

    `bract client init` names every client's file node.pub and writes the client's name as the comment.
    """
    return key.comment.replace(" ", "-") if file.stem == "node" and key.comment else file.stem


def _check_free(home: ServerHome, name: str, key: PublicKey) -> None:
    for stored in key_files(home.clients):
        same_key = read_public_key(stored).line == key.line
        if same_key and stored.stem != name:
            raise ConfigError(f"this key is admitted already, as {stored.stem!r}")
        if stored.stem == name and not same_key:
            raise ConfigError(f"another key is admitted as {name!r}: give --name, or revoke that one first")


def _active(nodes: list[Node]) -> Node | None:
    return next((node for node in nodes if node.status != UNREGISTERED), None)


def _file(home: ServerHome, name: str) -> Path:
    return home.clients / f"{name}.pub"
