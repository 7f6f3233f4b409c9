"""Who may take part, from the files and from the server: files say who is who, Flower's database decides."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.deployment.client_keys import PublicKey, key_of_pem, read_public_key
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Node, NotRunningError, control


@dataclass(frozen=True)
class Client:
    """One client, as `bract server list` shows it.

    Attributes:
        name: Its name here.
        key: Fingerprint of its key.
        node_id: Flower's number of it; none if the server does not run, or does not know it.
        status: online, offline, "never seen", revoked, "not registered" (a file that the server does not know: admit
            it again), or "unknown" (the server does not run).
        seen: When it last came or went, ISO 8601, UTC; empty if never, or not known.
        admitted: When, ISO 8601, UTC; empty if not known.
    """

    name: str
    key: str
    node_id: int | None
    status: str
    seen: str
    admitted: str


def list_clients(home: ServerHome) -> tuple[list[Client], bool]:
    """All clients, the admitted first, then the revoked, then keys that were admitted past these files.

    Returns:
        The clients, and whether the server runs: if not, they are what its files say.

    Raises:
        FederationError: Something else answers in the server's place, or it refused.
        ConfigError: A stored key cannot be read.
    """
    try:
        with control(home) as server:
            nodes, runs = server.nodes(), True
    except NotRunningError:
        nodes, runs = [], False
    by_key = {node.pem: node for node in nodes}
    found = [_admitted(file, by_key, runs) for file in key_files(home.clients)]
    found += [_revoked(file, by_key) for file in key_files(home.revoked)]
    shown = {client.key for client in found}
    for node in nodes:
        key = key_of_pem(node.pem)
        if key is not None and key.fingerprint not in shown and node.status != UNREGISTERED:
            found.append(_client(node.name or f"(node {node.node_id})", key, node, _status(node)))
    return found, runs


def key_files(folder: Path) -> list[Path]:
    """The keys in a folder, by name."""
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
    # Anything but this would be a key that was let in again past these files.
    status = "revoked" if node.status == UNREGISTERED else f"{_status(node)}, though revoked"
    return _client(name, key, node, status)


def _client(name: str, key: PublicKey, node: Node, status: str) -> Client:
    return Client(name, key.fingerprint, node.node_id, status, _short(node.seen), _short(node.admitted))


def _status(node: Node) -> str:
    return "never seen" if node.status == "registered" else node.status


def _written(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _short(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="seconds") if time else ""
