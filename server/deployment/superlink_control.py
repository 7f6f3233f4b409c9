"""Administration of the running server from this machine.

It uses Flower's own client class. The `flwr supernode` commands take two seconds each, do not print keys, and report
errors only as text.
"""

import hashlib
import os
import sqlite3
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.config.loading import Scalar
from common.errors import ConfigError, FederationError
from server.deployment.client_keys import PublicKey
from server.deployment.server_folder import ServerHome

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

UNREGISTERED = "unregistered"
# Codes of Flower's errors.
_ALREADY_IN_USE = (23,)
_NOT_FOUND = (24, 28)


class NotRunningError(FederationError):
    """Error of a command that needs the server while it is not running."""


@dataclass(frozen=True)
class Node:
    """Record of one node in the server's database.

    Attributes:
        node_id: Flower's id of the node.
        pem: Public key of the node, in PEM.
        status: registered (never seen), online, offline, or unregistered.
        admitted: Time when the key was admitted, ISO 8601.
        seen: Time when the node last connected or disconnected, ISO 8601; empty if never.
        name: Name under which the key was admitted; may be empty.
    """

    node_id: int
    pem: bytes
    status: str
    admitted: str
    seen: str
    name: str


class Control:
    """Client of the server's Control API."""

    def __init__(self, client: "ControlHttpClient") -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """Return all nodes that were ever admitted, including the unregistered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        return [
            Node(
                info.node_id,
                info.public_key,
                info.status,
                info.registered_at,
                max(info.last_activated_at, info.last_deactivated_at, info.unregistered_at),
                info.name,
            )
            for info in self._client.ListNodes(ListNodesRequest()).nodes_info
        ]

    def register(self, key: PublicKey, name: str) -> int:
        """Register a key and return the id of its node.

        Raises:
            ConfigError: The server knows this key already, perhaps as an unregistered one.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with _refusal(_ALREADY_IN_USE, "the server knows this key already"):
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key.pem, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a node and refuse its later requests.

        Raises:
            ConfigError: The server has no node with this id.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with _refusal(_NOT_FOUND, f"the server has no node {node_id}"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes, settings: Mapping[str, Scalar]) -> int:
        """Submit a run and return Flower's id of it.

        Args:
            bundle: Code that server and clients run, as `flwr build` makes it.
            settings: All settings of the run, as a flat mapping.

        Raises:
            FederationError: The server did not start the run.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(settings)))
        reply = self._client.StartRun(request)
        if not reply.HasField("run_id"):
            raise FederationError("the server did not start the run; its own log says why")
        return int(reply.run_id)

    def run_state(self, run_id: int) -> str:
        """Return `pending`, `starting`, `running` or `finished:` with the result, such as `finished:failed`."""
        from flwr.proto.control_pb2 import ListRunsRequest

        status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return ":".join(filter(None, (status.status, status.sub_status)))

    def stop_run(self, run_id: int) -> None:
        """Stop a run without deleting its files."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._client.StopRun(StopRunRequest(run_id=run_id))


def forget_key(database: Path, key: PublicKey) -> None:
    """Remove a revoked key from Flower's database.

    Flower accepts each key only once, so this lets the key be admitted again. The node that had the key stays revoked.

    Raises:
        FederationError: The database cannot be written.
    """
    try:
        with closing(sqlite3.connect(database, timeout=10.0)) as connection, connection:
            connection.execute(
                "UPDATE node SET public_key = NULL WHERE public_key = ? AND status = ?", (key.pem, UNREGISTERED)
            )
    except sqlite3.Error as error:
        raise FederationError(
            f"{database} cannot be written ({error}), so the revoked key stays revoked: the client must make a new key"
        ) from None


@contextmanager
def control(home: ServerHome) -> Iterator[Control]:
    """Connect to the server that runs from this folder, over TLS.

    Raises:
        NotRunningError: Nothing listens at the server's address.
        FederationError: Another program answers there, or the server refused.
        ConfigError: The authority's certificate cannot be read.
    """
    import httpx
    from flwr.supercore.control import ControlHttpClient

    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        trust.load_verify_locations(cafile=home.authority_file)
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{home.authority_file} cannot be read") from None
    try:
        with _without_proxy(home), ControlHttpClient(f"https://{home.control_address}", verify=trust) as client:
            yield Control(client)
    except httpx.ConnectError as error:
        # Another program at this port shows another certificate. The TLS error arrives only as text.
        if "certificate" in str(error).lower() or "ssl" in str(error).lower():
            raise FederationError(f"what answers at {home.control_address} is not this server: {error}") from None
        raise NotRunningError(
            f"no server runs at {home.control_address}: start it with `bract server start {home.folder}`"
        ) from None
    except httpx.HTTPStatusError as error:
        raise FederationError(f"the server refused: {error.response.status_code} {error.response.text[:200]}") from None
    except httpx.HTTPError as error:
        raise FederationError(f"the server at {home.control_address} did not answer: {error}") from None


@contextmanager
def _without_proxy(home: ServerHome) -> Iterator[None]:
    """Add the server's address to NO_PROXY."""
    # A proxy would look for a loopback address on its own machine.
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = ",".join(filter(None, [before, home.control_host]))
    try:
        yield
    finally:
        os.environ.pop("NO_PROXY") if before is None else os.environ.update(NO_PROXY=before)


@contextmanager
def _refusal(codes: tuple[int, ...], meaning: str) -> Iterator[None]:
    """Replace an error of Flower that has one of these codes by a ConfigError."""
    import httpx
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.HTTPStatusError as error:
        refusal = FlowerError.from_json(error.response.text)
        if refusal is None or refusal.code not in codes:
            raise
        raise ConfigError(meaning) from None
