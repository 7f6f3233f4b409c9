"""Adapter to the internals of Flower that a client uses.

A client runs a SuperNode, and does the SuperNode's tasks in place of Flower's own ClientApp process.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

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
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_log = logging.getLogger("bract.client")
Pull = Callable[[str], bytes]
RunEnded = RunNotRunningException


@dataclass(frozen=True)
class Task:
    """A task of a SuperNode with the connection for its reply.

    Attributes:
        client: Connection to the SuperNode.
        context: The run's context as the SuperNode keeps it.
        run: Flower's id of the run.
        bundle: Code that the server sent, a zip file; nothing has been read from it.
        asked: The message without its content.
        tree: Ids of the objects that the message's content is made of.
    """

    client: RuntimeHttpClient
    context: Context
    run: int
    bundle: bytes
    asked: Message
    tree: ObjectTree

    @property
    def kind(self) -> str:
        """Type of the message, such as `train`."""
        return self.asked.metadata.message_type

    @property
    def round(self) -> int:
        """Round number in the message's envelope, zero for none."""
        group = self.asked.metadata.group_id
        return int(group) if group.isascii() and group.isdecimal() and len(group) < 9 else 0

    def message(self, *, max_bytes: int) -> Message:
        """Fetch the message with its content.

        Args:
            max_bytes: Largest size of its content; objects beyond it are not fetched.

        Raises:
            FederationError: The content is larger.
        """
        node, run = Node(node_id=self.context.node_id), self.context.run_id
        pull = _counting(make_pull_object_fn_protobuf(self.client.PullObject, node, run), max_bytes)
        confirm = make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, node, run)
        try:
            message = pull_and_inflate_object_from_tree(self.tree, pull, confirm, return_type=Message)
        except FederationError:
            self.discard()
            raise
        # As Flower's own client does, so that the reply names the message that it answers.
        message.metadata.__dict__["_message_id"] = self.tree.object_id
        return message

    def ignore(self, *, max_bytes: int) -> None:
        """Fetch the message without reading it and have the SuperNode discard it.

        The SuperNode may still be fetching it from the server, so it is not discarded before it is whole.

        Args:
            max_bytes: Most bytes to fetch.
        """
        node, run = Node(node_id=self.context.node_id), self.context.run_id
        pull = _counting(make_pull_object_fn_protobuf(self.client.PullObject, node, run), max_bytes)
        try:
            pull_objects([tree.object_id for tree in iterate_object_tree(self.tree)], pull_object_fn=pull)
            self.discard()
        except (RunEnded, KeyboardInterrupt):
            raise
        except Exception as error:
            # The message is refused already, so a failure here changes no answer.
            _log.warning("a refused message could not be fetched (%s)", type(error).__name__)

    def discard(self) -> None:
        """Tell the SuperNode to forget the message's content."""
        node = Node(node_id=self.context.node_id)
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=self.context.run_id, message_object_id=self.tree.object_id)
        )

    def push(self, reply: Message, *, completed: bool) -> None:
        """Send the reply and end the task.

        Args:
            reply: The reply, or a bare failure code.
            completed: Whether the task was answered. The server learns this, and no reason.
        """
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
    """Begin a task and send heartbeats for it until the block ends.

    Args:
        address: The SuperNode's address for tasks, `host:port`.
        token: Proof that the task is ours.
        known: The message without its content, where another process has begun the task before.

    Raises:
        FederationError: The SuperNode has no message for the task.
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
    task = client.PullTaskInput(PullTaskInputRequest())
    _identify(task.task_id, task.run.run_id, task.context.node_id)
    pulled = client.PullMessages(PullAppMessagesRequest())
    if not pulled.messages_list:
        raise FederationError("the SuperNode has no message for a task that it offered")
    asked, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
    asked.metadata.__dict__["_message_id"] = tree.object_id
    context = context_from_proto(task.context)
    return Task(client, context, task.run.run_id, fab_from_proto(task.fab).content, asked, tree)


def _begun_before(client: RuntimeHttpClient, known: Message) -> Task:
    """Return a task without input, good for a failure reply alone.

    A SuperNode hands out a task's input once.
    """
    run, node = known.metadata.run_id, known.metadata.dst_node_id
    _identify(0, run, node)
    context = Context(run, node, {}, RecordDict(), {})
    return Task(client, context, run, b"", known, ObjectTree(object_id=known.metadata.message_id))


def _identify(task_id: int, run_id: int, node_id: int) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def as_bytes(message: Message) -> bytes:
    """Return a message's envelope as bytes for another process."""
    return bytes(message_to_proto(message).SerializeToString())


def from_bytes(envelope: bytes) -> Message | None:
    """Return the message of an envelope.

    No bytes stand for no message.
    """
    return message_from_proto(WireMessage.FromString(envelope)) if envelope else None


class Offers:
    """The tasks that a SuperNode offers to the holder of its secret.

    Args:
        address: The SuperNode's address for tasks, `host:port`.
        secret: Secret that this process shares with the SuperNode.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            # Loopback only, and the secret is never sent: requests are signed with it.
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(COMPONENT),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE]),
            ],
        )

    def take(self) -> str | None:
        """Take the next waiting task and return its token.

        None stands for no task, and for a SuperNode that does not answer.
        """
        try:
            taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return None
        return taken.token if taken.HasField("task") and taken.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def run_supernode() -> None:
    """Run Flower's `flower-supernode` in this process, without durations in its messages.

    Raises:
        FederationError: See `omit_durations`.
    """
    omit_durations()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


def omit_durations() -> None:
    """Remove from each message of this process's SuperNode how long its app took.

    Raises:
        FederationError: This version of Flower would send the durations in another place.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient

    if "clientapp_runtime_list" not in PushMessagesRequest.DESCRIPTOR.fields_by_name:
        raise FederationError(
            "this version of Flower sends durations in another place, where they cannot be removed: the client does "
            "not start. Install the version of Flower that Bract names"
        )
    push = FleetHttpClient.PushMessages

    def push_without(client: FleetHttpClient, request: PushMessagesRequest) -> Any:
        request.ClearField("clientapp_runtime_list")
        return push(client, request)

    # Flower builds the client object itself, so the method of its class is replaced.
    setattr(FleetHttpClient, push.__name__, push_without)


def end_with_parent_on_windows(parent: int) -> None:
    """End this process when its parent ends, by a thread of Flower's."""
    from flwr.supercore.app_utils import start_parent_process_monitor

    start_parent_process_monitor(parent)
