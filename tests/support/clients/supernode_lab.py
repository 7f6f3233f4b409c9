"""The half of a real SuperNode that hands out tasks, without a server: what a launcher and Flower's own talk to."""

import hashlib
import secrets
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory

_SECONDS = 60.0
# A launcher as `bract client start` runs it, without a SuperNode of its own.
LAUNCH = """
import sys, threading, time
from pathlib import Path
from rich.console import Console
from client.runtime import task
from client.status.activity import ActivityRecord
from client.runtime.launcher import Launcher
from client.runtime.operator_log import operator_log
folder, address, secret = Path(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
task.MAX_MESSAGE_BYTES = int(sys.argv[4])
if sys.argv[5] == "threaded":  # forking is not safe then
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
with operator_log(folder, Console()) as operator:
    launcher = Launcher(folder, address, secret, operator, ActivityRecord(folder))
    while True:
        launcher.turn(stirred=True)
        launcher.wait(0.05)
"""


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A bundle, as a server would send it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def app_bundle(body: str) -> dict[str, bytes]:
    """A bundle whose `client.app` is the given text after its imports."""
    project = (
        '[project]\nname = "bract"\nversion = "0.1.0"\n[tool.flwr.app]\npublisher = "bract"\n'
        '[tool.flwr.app.components]\nclientapp = "client.app:app"\nserverapp = "client.app:app"\n'
    )
    head = (
        "from flwr.app import ConfigRecord, Message, RecordDict\nfrom flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
    )
    return {"pyproject.toml": project.encode(), "client/__init__.py": b"", "client/app.py": (head + body).encode()}


ECHO = (
    "@app.query()\ndef say(message, context):\n"
    '    return Message(RecordDict({"said": ConfigRecord({"what": WHAT})}), reply_to=message)\n'
)


def saying(what: str, before: str = "") -> dict[str, bytes]:
    """A bundle that answers a query with a Python expression's value."""
    return app_bundle(f"{before}\n{ECHO.replace('WHAT', what)}")


@dataclass
class Runtime:
    """A SuperNode's Runtime API and what is behind it."""

    address: str
    secret: bytes
    state: NodeState

    def offer(self, bundle: bytes, kind: str = "query", group: str = "", content: RecordDict | None = None) -> None:
        """Have a message of a new run waiting, as if it had come from a server."""
        run = secrets.randbits(60)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
        message = Message(content or RecordDict({"config": ConfigRecord({"a": 1})}), 7, kind, group_id=group)
        message.metadata.__dict__["_message_id"] = message.object_id
        described = Run.create_empty(run)
        described.fab_id, described.fab_version = "bract/bract", "0.1.0"
        described.fab_hash, described.series_id = hashlib.sha256(bundle).hexdigest(), run
        self.state.store_run(described)
        self.state.store_fab(Fab(described.fab_hash, bundle, {}))
        self.state.set_run_series_context(run, Context(run, 7, {"bract-client": "/elsewhere"}, RecordDict(), {}))
        store = self.state.object_store
        store.preregister(run, get_object_tree(message))
        for name, part in get_all_nested_objects(message).items():
            store.put(name, part.deflate())
        self.state.store_message(message)
        self.state.create_task(TaskType.CLIENT_APP, run, fab_hash=described.fab_hash)

    def reply(self) -> Message:
        """The next reply; its content is in place."""
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            if found := self.state.get_messages_legacy(is_reply=True):
                return self._whole(found[0])
            time.sleep(0.005)
        raise TimeoutError("no reply came")

    def _whole(self, reply: Message) -> Message:
        from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree

        store, name = self.state.object_store, reply.metadata.message_id

        def pull(part: str) -> bytes:
            while not (content := store.get(part)):
                time.sleep(0.005)
            return content

        tree = store.get_object_tree(name)
        return pull_and_inflate_object_from_tree(tree, pull, lambda _: None, return_type=Message)


@contextmanager
def runtime() -> Iterator[Runtime]:
    """A Runtime API on loopback, in a thread of this process."""
    secret = secrets.token_bytes(32)
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    factory.state().set_node_id(7)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    app = create_app(state_factory=factory, superexec_auth_secret=secret)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        yield Runtime(f"127.0.0.1:{port}", secret, factory.state())
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def launched(
    folder: Path, runtime: Runtime, env: Mapping[str, str], *, max_bytes: int = 10_000_000, threaded: bool = False
) -> Iterator["subprocess.Popen[bytes]"]:
    """A launcher for a client's folder, in a process of its own; what it says goes to DIR/told.log."""
    command = [sys.executable, "-c", LAUNCH, str(folder), runtime.address, runtime.secret.hex()]
    command += [str(max_bytes), "threaded" if threaded else ""]
    with (folder / "told.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
