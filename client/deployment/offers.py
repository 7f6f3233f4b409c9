"""The tasks that a SuperNode on this machine offers."""

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from client.deployment.exchange import COMPONENT

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class Offers:
    """Takes tasks, one at a time; a shared secret shows that we may.

    Args:
        address: Where the SuperNode hands them out, `host:port`.
        secret: Known to this process and the SuperNode.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,  # loopback; the secret is never sent, requests are signed with it
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(COMPONENT),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE]),
            ],
        )

    def take(self) -> str | None:
        """The token of a ClientApp's task, if one is waiting; None too if the SuperNode does not answer."""
        try:
            taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return None
        return taken.token if taken.HasField("task") and taken.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
