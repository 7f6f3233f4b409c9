"""The running server's administration, as seen from this machine: its nodes, and who may be one.

Flower's own client class is used, not its `flwr supernode` commands: they start a process of two seconds each, print no
keys, and tell errors only in text.
"""

import hashlib
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config.loading import Scalar
from common.errors import ConfigError, FederationError
from server.deployment.client_keys import PublicKey
from server.deployment.server_folder import ServerHome

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

UNREGISTERED = "unregistered"
_ALREADY_IN_USE = 23
_NOT_FOUND = (24, 28)


class NotRunningError(FederationError):
    """Nothing answers where the server should be."""


@dataclass(frozen=True)
class Node:
    """What the server knows of one node.

    Attributes:
        node_id: Flower's number of it.
        pem: Its public key.
        status: registered (never seen), online, offline, or unregistered.
        admitted: When its key was admitted, ISO 8601, UTC.
        seen: When it last came or went, ISO 8601, UTC; empty if never.
        name: As it was admitted; may be empty.
    """

    node_id: int
    pem: bytes
    status: str
    admitted: str
    seen: str
    name: str


class Control:
    """Calls of the Control API."""

    def __init__(self, client: "ControlHttpClient") -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """All nodes the server has ever admitted, the unregistered too."""
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
        """Admit a key; gives the node's number.

        Raises:
            ConfigError: The server has this key already, or had it and it was unregistered.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with _refusal(_ALREADY_IN_USE, "the server has had this key already"):
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key.pem, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Cut a node off.

        Raises:
            ConfigError: There is no such node.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with _refusal(_NOT_FOUND, f"the server has no node {node_id}"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes, settings: Mapping[str, Scalar]) -> int:
        """Submit a run; gives Flower's number of it.

        Args:
            bundle: The code that server and clients run, as `flwr build` makes it.
            settings: The whole run configuration, flat.

        Raises:
            FederationError: The server took it for no run.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        asked = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(settings)))
        reply = self._client.StartRun(asked)
        if not reply.HasField("run_id"):
            raise FederationError("the server did not start the run; its own log says why")
        return int(reply.run_id)

    def run_state(self, run_id: int) -> str:
        """Where a run is: `pending`, `starting`, `running` or `finished`, and how it finished."""
        from flwr.proto.control_pb2 import ListRunsRequest

        status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return ":".join(filter(None, (status.status, status.sub_status)))

    def stop_run(self, run_id: int) -> None:
        """Stop a run; what it has saved stays."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._client.StopRun(StopRunRequest(run_id=run_id))


@contextmanager
def control(home: ServerHome) -> Iterator[Control]:
    """Talk to the server that runs from this folder, over TLS.

    Raises:
        NotRunningError: Nothing listens there.
        FederationError: What answers is not this server, or it refused.
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
    """A proxy that the shell names would be asked to reach its own loopback."""
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = ",".join(filter(None, [before, home.control_host]))
    try:
        yield
    finally:
        os.environ.pop("NO_PROXY") if before is None else os.environ.update(NO_PROXY=before)


@contextmanager
def _refusal(codes: int | tuple[int, ...], meaning: str) -> Iterator[None]:
    """Say what one of Flower's error codes means; let others pass."""
    import httpx
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.HTTPStatusError as error:
        found = FlowerError.from_json(error.response.text)
        if found is None or found.code not in (codes if isinstance(codes, tuple) else (codes,)):
            raise
        raise ConfigError(meaning) from None
