"""One task of a SuperNode, as its Runtime API hands it out: with `offers`, all here that speaks Flower's protocol."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import context_from_proto, fab_from_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from common.errors import FederationError

COMPONENT = "bract-client"
_log = logging.getLogger("bract.client")
Pull = Callable[[str], bytes]
RunEnded = RunNotRunningException


@dataclass(frozen=True)
class Task:
    """One task: what it asks for, by whose code, and the way back.

    Attributes:
        context: As the SuperNode keeps it.
        run: Flower's id of the run.
        bundle: The code that the server sent, a zip file; nothing of it has been looked at.
        asked: The message without its content.
    """

    client: RuntimeHttpClient
    context: Context
    run: int
    bundle: bytes
    asked: Message
    tree: ObjectTree

    @property
    def kind(self) -> str:
        """What is asked for, such as `train`."""
        return self.asked.metadata.message_type

    @property
    def round(self) -> int:
        """The round as the envelope says it; 0 where it does not."""
        group = self.asked.metadata.group_id
        return int(group) if group.isascii() and group.isdecimal() and len(group) < 9 else 0

    def message(self, *, max_bytes: int) -> Message:
        """The message with its content.

        Args:
            max_bytes: Most that its content may come to; what is beyond it is not pulled.

        Raises:
            FederationError: It is larger.
        """
        node, run = Node(node_id=self.context.node_id), self.context.run_id
        pull = _counting(make_pull_object_fn_protobuf(self.client.PullObject, node, run), max_bytes)
        confirm = make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, node, run)
        try:
            message = pull_and_inflate_object_from_tree(self.tree, pull, confirm, return_type=Message)
        except FederationError:
            self.discard()
            raise
        message.metadata.__dict__["_message_id"] = self.tree.object_id  # as Flower's own client does
        return message

    def ignore(self, *, max_bytes: int) -> None:
        """Let the SuperNode have the message whole, which it may be fetching still, and then forget it.

        Only bytes come here, and nobody looks at them. Whatever goes wrong is the server's own loss.

        Args:
            max_bytes: Most that is fetched.
        """
        node, run = Node(node_id=self.context.node_id), self.context.run_id
        pull = _counting(make_pull_object_fn_protobuf(self.client.PullObject, node, run), max_bytes)
        try:
            pull_objects([tree.object_id for tree in iterate_object_tree(self.tree)], pull_object_fn=pull)
            self.discard()
        except (RunEnded, KeyboardInterrupt):
            raise
        except Exception as error:
            _log.warning("a refused message could not be fetched (%s)", type(error).__name__)

    def discard(self) -> None:
        """Let the SuperNode forget the message's content, which will not be pulled."""
        node = Node(node_id=self.context.node_id)
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=self.context.run_id, message_object_id=self.tree.object_id)
        )

    def push(self, reply: Message, *, completed: bool) -> None:
        """Send the reply, and say that the task is over: whether it failed, never how."""
        push_message(self.client, reply, self.context)
        push_task_output(self.client, self.context if completed else None, "completed" if completed else "failed", "")


def _counting(pull: Pull, max_bytes: int) -> Pull:
    lock, total = Lock(), 0

    def counting(object_id: str) -> bytes:
        nonlocal total
        if total > max_bytes:
            raise FederationError(f"a message is larger than {max_bytes:,} bytes")
        content = pull(object_id)
        with lock:
            total += len(content)
        if total > max_bytes:
            raise FederationError(f"a message is larger than {max_bytes:,} bytes")
        return content

    return counting


@contextmanager
def task_of(address: str, token: str, known: Message | None = None) -> Iterator[Task]:
    """Begin a task that was taken, and show the SuperNode that it is alive until it is over.

    Args:
        address: Where the SuperNode hands it out.
        token: Of the task.
        known: The message without its content, where another process has begun the task before.

    Raises:
        FederationError: The SuperNode has no message for it.
    """
    with _client(address, token) as client:
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        try:
            yield _begin(client, known)
        finally:
            if heartbeat.is_running:
                heartbeat.stop()


def _client(address: str, token: str) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(COMPONENT), RuntimeTokenHttpInterceptor(token)],
        retry_invoker=make_simple_http_retry_invoker(),
    )


def _begin(client: RuntimeHttpClient, known: Message | None) -> Task:
    if known is not None:
        return _begun_before(client, known)
    given = client.PullTaskInput(PullTaskInputRequest())
    _identify(given.task_id, given.run.run_id, given.context.node_id)
    pulled = client.PullMessages(PullAppMessagesRequest())
    if not pulled.messages_list:
        raise FederationError("the SuperNode has no message for a task that it offered")
    asked, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
    asked.metadata.__dict__["_message_id"] = tree.object_id
    context = context_from_proto(given.context)
    return Task(client, context, given.run.run_id, fab_from_proto(given.fab).content, asked, tree)


def _begun_before(client: RuntimeHttpClient, known: Message) -> Task:
    """A SuperNode hands out a task's input once: what is left to do is to answer."""
    run, node = known.metadata.run_id, known.metadata.dst_node_id
    _identify(0, run, node)
    context = Context(run, node, {}, RecordDict(), {})
    return Task(client, context, run, b"", known, ObjectTree(object_id=known.metadata.message_id))


def _identify(task_id: int, run_id: int, node_id: int) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def as_bytes(message: Message) -> bytes:
    """The envelope of a message, for another process."""
    return bytes(message_to_proto(message).SerializeToString())


def from_bytes(envelope: bytes) -> Message | None:
    """The envelope of a message; None where there is none."""
    return message_from_proto(WireMessage.FromString(envelope)) if envelope else None


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
