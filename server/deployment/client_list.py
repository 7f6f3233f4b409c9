"""List of a server's clients, from its files and from Flower's database."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.deployment.client_keys import PublicKey, key_of_pem, read_public_key
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Node, NotRunningError, control


@dataclass(frozen=True)
class Client:
    """Line of `bract server list` about one client.

    Attributes:
        name: Name of the client at this server.
        key: Fingerprint of the client's key.
        node_id: Flower's id of the client's node. None if the server is not running or does not know the key.
        status: online, offline, "never seen", revoked, "not registered" (the server does not know the key of this
            file; admit it again), or "unknown" (the server is not running).
        seen: Time when it last connected or disconnected, ISO 8601, UTC; empty if never or not known.
        admitted: Time of admission, ISO 8601, UTC; empty if not known.
    """

    name: str
    key: str
    node_id: int | None
    status: str
    seen: str
    admitted: str


def list_clients(home: ServerHome) -> tuple[list[Client], bool]:
    """Return all clients and whether the server is running.

    Admitted clients come first, then revoked ones, then keys that Flower's database admits without a file here. If
    the server is not running, the list follows from the files alone.

    Raises:
        FederationError: Another program answers at the server's address, or the server refused.
        ConfigError: A stored key cannot be read.
    """
    try:
        with control(home) as server:
            nodes, runs = server.nodes(), True
    except NotRunningError:
        nodes, runs = [], False
    by_key = {node.pem: node for node in nodes}
    clients = [_admitted(file, by_key, runs) for file in key_files(home.clients)]
    clients += [_revoked(file, by_key) for file in key_files(home.revoked)]
    listed = {client.key for client in clients}
    for node in nodes:
        key = key_of_pem(node.pem)
        if key is not None and key.fingerprint not in listed and node.status != UNREGISTERED:
            clients.append(_client(node.name or f"(node {node.node_id})", key, node, _status(node)))
    return clients, runs


def key_files(folder: Path) -> list[Path]:
    """Return the key files in a folder, ordered by name."""
    return sorted(folder.glob("*.pub"))


def _admitted(file: Path, nodes: dict[bytes, Node], runs: bool) -> Client:
    key = read_public_key(file)
    node = nodes.get(key.pem)
    if node is None or node.status == UNREGISTERED:
        return Client(file.stem, key.fingerprint, None, "not registered" if runs else "unknown", "", _written(file))
    return _client(file.stem, key, node, _status(node))


def _revoked(file: Path, nodes: dict[bytes, Node]) -> Client:
    key = read_public_key(file)
    node = nodes.get(key.pem)
    name = key.comment or file.stem
    if node is None:
        return Client(name, key.fingerprint, None, "revoked", _written(file), "")
    # Flower's own commands could have admitted the key again. The list must show that.
    status = "revoked" if node.status == UNREGISTERED else f"{_status(node)}, though revoked"
    return _client(name, key, node, status)


def _client(name: str, key: PublicKey, node: Node, status: str) -> Client:
    return Client(name, key.fingerprint, node.node_id, status, _in_utc(node.seen), _in_utc(node.admitted))


def _status(node: Node) -> str:
    return "never seen" if node.status == "registered" else node.status


def _written(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _in_utc(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="seconds") if time else ""
