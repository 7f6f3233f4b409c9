"""A real SuperLink behind the gate, real SuperNodes, and strangers: everything over TLS.

Drives `server.commands.operate`, `server.commands.run`, `server.deployment.submit_run`,
`server.deployment.superlink_control`.
"""

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from common.errors import ConfigError
from server.deployment.admission import admit, revoke
from server.deployment.certificates import Certificate, new_authority, new_server_certificate
from server.deployment.client_list import list_clients
from server.deployment.request_filter import LARGEST_BODY
from server.deployment.server_folder import ServerHome
from server.deployment.setup import make_home, renew
from server.deployment.start import start_changes, start_command
from tests.support.network.federation import environment, free_port, process

pytestmark = pytest.mark.slow
PROTOBUF = {"content-type": "application/protobuf"}
NAMESPACE = f"bract-gate-{os.getpid()}"
CUT_HANDSHAKE = "SSL/TLS handshake error detected"
OUR_SIDE, THEIR_SIDE = "10.213.71.1", "10.213.71.2"


def wait(what: str, holds: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.1)


def bract(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bract", "server", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def serving(home: ServerHome) -> Iterator["subprocess.Popen[bytes]"]:
    """`bract server start`, until it answers."""
    log = home.folder.parent / "server.log"
    with process([sys.executable, "-m", "bract", "server", "start", str(home.folder)], log, dict(os.environ)) as server:
        wait(f"the server: {log.read_text()}", lambda: server.poll() is not None or list_clients(home)[1])
        assert server.poll() is None, log.read_text()
        yield server


class Ward:
    """A client's key, and its node."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        key = ec.generate_private_key(ec.SECP384R1())
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")

    def node(
        self, *options: str, key: bool = True, within: Sequence[str] = ()
    ) -> AbstractContextManager["subprocess.Popen[bytes]"]:
        command = [*within, "flower-supernode", "--host", "127.0.0.1", "--port", str(free_port()), *options]
        command += ["--auth-supernode-private-key", str(self.private)] if key else []
        return process(command, self.folder / f"{self.name}.log", environment(self.folder / f"{self.name}-home"))


def towards(home: ServerHome, authority: Path | None = None) -> list[str]:
    return ["--superlink", f"127.0.0.1:{home.port}", "--root-certificates", str(authority or home.authority_file)]


def status(home: ServerHome, name: str) -> str:
    return next(client.status for client in list_clients(home)[0] if client.name == name)


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server", names=["localhost", OUR_SIDE], port=free_port(), days=825)


def test_client_is_admitted_seen_and_cut_off(home: ServerHome, tmp_path: Path) -> None:
    ward, where = Ward(tmp_path, "ward-7"), str(home.folder)
    with serving(home):
        assert "Admitted     ward-7" in bract("admit", str(ward.public), "--server", where).stdout
        again = bract("admit", str(ward.public), "--server", where)
        assert (again.returncode, "admitted already" in again.stderr) == (2, True)
        assert status(home, "ward-7") == "never seen"

        with ward.node(*towards(home)) as node:
            wait("online", lambda: status(home, "ward-7") == "online")
            assert '"online"' in bract("list", "--server", where, "--json").stdout
            assert bract("revoke", "ward-7", "--server", where).returncode == 0
            assert node.wait(20) == 0  # as if it had been asked to end
        assert "SuperNode terminated gracefully" in ward.log
        assert status(home, "ward-7") == "revoked"

        with ward.node(*towards(home)) as node:
            assert node.wait(30) == 1
        assert "[code: 2004] Failed to activate SuperNode" in ward.log
        refused = bract("admit", str(ward.public), "--server", where)
        assert (refused.returncode, "was revoked" in refused.stderr) == (2, True)

        assert bract("admit", str(ward.public), "--server", where, "--again").returncode == 0
        with ward.node(*towards(home)):
            wait("online again", lambda: status(home, "ward-7") == "online")
        assert sorted(path.name for path in home.clients.rglob("*.pub")) == ["ward-7.pub"]


def test_admission_is_put_right_by_giving_it_again(home: ServerHome, tmp_path: Path) -> None:
    ward = Ward(tmp_path, "ward-7")
    with serving(home):
        first = admit(home, ward.public, None)
        # Killed between the server's answer and the file; and with the file, but a server that lost its database.
        (home.clients / "ward-7.pub").unlink()
        assert [client.name for client in list_clients(home)[0]] == ["ward-7"]
        assert admit(home, ward.public, None).node_id == first.node_id
    for file in home.folder.glob("superlink.sqlite*"):
        file.unlink()
    with serving(home):
        assert status(home, "ward-7") == "not registered"
        assert admit(home, ward.public, None).node_id != first.node_id
        with pytest.raises(ConfigError, match="admitted already"):
            admit(home, ward.public, None)
        # Killed between the server's answer and the move of the file.
        key = (home.clients / "ward-7.pub").read_bytes()
        revoke(home, "ward-7")
        (home.clients / "ward-7.pub").write_bytes(key)
        assert revoke(home, "ward-7").node_id is None
        assert status(home, "ward-7") == "revoked"


def test_node_refuses_a_server_it_must_not_trust(home: ServerHome, tmp_path: Path) -> None:
    wards = {name: Ward(tmp_path, name) for name in ("stranger", "keyless", "elsewhere", "plain", "plain-keyed")}
    (tmp_path / "other.pem").write_bytes(new_authority("other").certificate)
    plain = ["--superlink", f"127.0.0.1:{home.port}", "--insecure"]
    with (
        serving(home),
        wards["stranger"].node(*towards(home)) as stranger,
        wards["keyless"].node(*towards(home), key=False) as keyless,
        wards["elsewhere"].node(*towards(home, tmp_path / "other.pem")) as elsewhere,
        wards["plain-keyed"].node(*plain) as keyed,
        wards["plain"].node(*plain, key=False) as unkeyed,
    ):
        assert [node.wait(60) for node in (stranger, keyless, elsewhere, keyed)] == [1, 1, 1, 1]
        wait("a retry", lambda: "Connection attempt failed, retrying" in wards["plain"].log)
        assert unkeyed.poll() is None
    assert "[code: 2004] Failed to activate SuperNode" in wards["stranger"].log
    assert "[code: 2001] SuperNode authentication is enabled" in wards["keyless"].log
    assert "certificate verify failed: unable to get local issuer certificate" in wards["elsewhere"].log
    assert "Exit Code: 303" in wards["plain-keyed"].log
    assert all("Exit Code: 305" in wards[name].log for name in ("stranger", "keyless", "elsewhere"))


def test_node_refuses_an_expired_certificate_and_so_does_start(home: ServerHome, tmp_path: Path) -> None:
    authority = Certificate(home.authority_file.read_bytes(), home.authority_key_file.read_bytes())
    ended = new_server_certificate(authority, home.names, days=1, now=datetime.now(UTC) - timedelta(days=3))
    home.certificate_file.write_bytes(ended.certificate)
    home.key_file.write_bytes(ended.key)
    ward = Ward(tmp_path, "ward-7")

    refused = bract("start", str(home.folder))

    assert (refused.returncode, "--renew" in refused.stderr) == (2, True)
    # Past the checks, as if it had ended while the server ran.
    with (
        process(start_command(home), tmp_path / "server.log", os.environ | start_changes(home, os.environ)),
        ward.node(*towards(home)) as node,
    ):
        wait("the server", lambda: "Uvicorn running" in (tmp_path / "server.log").read_text())
        assert node.wait(60) == 1
    assert "certificate verify failed: certificate has expired" in ward.log
    assert bract("init", str(home.folder), "--renew").returncode == 0
    with serving(home):
        pass


# By Flower's own way of naming the authority to httpx.
@pytest.mark.filterwarnings("ignore:.verify=<str>. is deprecated:DeprecationWarning")
def test_an_admitted_node_pushes_only_replies_of_its_own(home: ServerHome, tmp_path: Path) -> None:
    """By Flower's own client, with an admitted key: Flower alone would pass on what comes in the server's name."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
    from flwr.proto.node_pb2 import Node
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    ward = Ward(tmp_path, "ward-7")
    key = load_ssh_private_key(ward.private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    with serving(home):
        node_id = admit(home, ward.public, None).node_id
        address = f"127.0.0.1:{home.port}"
        with FleetHttpClient.from_server_address(
            address, False, str(home.authority_file), interceptors=[signed]
        ) as client:
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            active = client.ActivateNode(ActivateNodeRequest(public_key=pem, heartbeat_interval=30))
            assert active.node_id == node_id
            node = Node(node_id=node_id)
            for sender, reply_to, status_code in ((1, "", 400), (node_id + 1, "x", 400), (node_id, "x", 429)):
                metadata = Metadata(run_id=1, src_node_id=sender, reply_to_message_id=reply_to)
                trees = [ObjectTree(object_id="x")]
                with pytest.raises(httpx.HTTPStatusError) as refused:
                    client.PushMessages(
                        PushMessagesRequest(
                            node=node, messages_list=[Message(metadata=metadata)], message_object_trees=trees
                        )
                    )
                assert refused.value.response.status_code == status_code
            with pytest.raises(httpx.HTTPStatusError, match="400"):
                client.PushObject(PushObjectRequest(node=node, run_id=1, object_id="x", object_content=bytes(9)))
    assert "refused to 127.0.0.1: '/v1/fleet/push-messages'" in (tmp_path / "server.log").read_text()


def test_a_new_authority_ends_the_trust_in_a_key_that_others_have(home: ServerHome, tmp_path: Path) -> None:
    stolen = {file: file.read_bytes() for file in (home.certificate_file, home.key_file)}
    old = Path(shutil.copy(home.authority_file, tmp_path / "old.pem"))
    wards = {name: Ward(tmp_path, name) for name in ("late", "ready", "deceived")}

    done = bract("init", str(home.folder), "--renew", "--new-authority")

    assert (done.returncode, "every client" in done.stdout) == (0, True), done.stderr
    with serving(home):
        for ward in wards.values():
            admit(home, ward.public, None)
        with wards["late"].node(*towards(home, old)) as late, wards["ready"].node(*towards(home)):
            assert late.wait(60) == 1
            wait("the client with the new authority", lambda: status(home, "ready") == "online")
    # Whoever has the old key stands in for the server.
    for file, content in stolen.items():
        file.write_bytes(content)
    with (
        process(start_command(home), tmp_path / "server.log", os.environ | start_changes(home, os.environ)),
        wards["deceived"].node(*towards(home)) as node,
    ):
        assert node.wait(60) == 1
    for name in ("late", "deceived"):
        assert "certificate verify failed" in wards[name].log


def test_killed_server_starts_again_and_nodes_come_back(home: ServerHome, tmp_path: Path) -> None:
    ward = Ward(tmp_path, "ward-7")
    with serving(home) as server, ExitStack() as nodes:
        admit(home, ward.public, None)
        nodes.enter_context(ward.node(*towards(home)))
        wait("online", lambda: status(home, "ward-7") == "online")
        family = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait()
        wait("the loss", lambda: "Connection attempt failed" in ward.log or CUT_HANDSHAKE in ward.log)
        # Flower's own watch ends what the server started.
        psutil.wait_procs(family, timeout=20)
        assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        with serving(renew(home.folder, names=[], days=None)):
            if CUT_HANDSHAKE in ward.log:
                # The server died within a handshake, after which Flower's node asks for nothing more. `bract client
                # start` starts such a node again, and so does this test.
                nodes.close()
                nodes.enter_context(ward.node(*towards(home)))
                wait("back", lambda: "SuperNode ID" in ward.log.rpartition(CUT_HANDSHAKE)[2])
            else:
                wait("back", lambda: "Connection successful" in ward.log)
            assert status(home, "ward-7") == "online"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_ends_cleanly_with_all_it_started(home: ServerHome, number: int) -> None:
    with serving(home) as server:
        family = psutil.Process(server.pid).children(recursive=True)
        assert family
        wait("its child", lambda: "flower-superexec" in " ".join(family[0].cmdline()))
        server.send_signal(number)
        server.wait(20)
        _, alive = psutil.wait_procs(family, timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert "Application shutdown complete" in (home.folder.parent / "server.log").read_text()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def another_machine() -> Iterator[list[str]]:
    """A network namespace with an address of its own; gives what runs a command in it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can make a network namespace")
    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "bractg0", "type", "veth", "peer", "name", "bractg1", "netns", NAMESPACE)
        ip("addr", "add", f"{OUR_SIDE}/30", "dev", "bractg0")
        ip("link", "set", "bractg0", "up")
        for words in (["addr", "add", f"{THEIR_SIDE}/30", "dev", "bractg1"], ["link", "set", "bractg1", "up"]):
            ip("-n", NAMESPACE, *words)
        ip("-n", NAMESPACE, "link", "set", "lo", "up")
        yield ["ip", "netns", "exec", NAMESPACE]
    finally:
        ip("netns", "del", NAMESPACE)


ASK = """
import ssl, sys, httpx
trust = ssl.create_default_context(cafile=sys.argv[1])
def pieces(size):
    for _ in range(size // 65536):
        yield bytes(65536)
with httpx.Client(verify=trust, base_url=sys.argv[2], trust_env=False) as client:
    for line in sys.argv[3:]:
        path, size, header = line.split("|")
        headers = {"content-type": "application/protobuf"} | ({header: "127.0.0.1"} if header else {})
        try:
            print(client.post(path, headers=headers, content=pieces(int(size)) if size else b"").status_code)
        except httpx.WriteError:
            print("closed")
"""


def test_another_machine_reaches_nodes_business_only(
    home: ServerHome, tmp_path: Path, another_machine: list[str]
) -> None:
    ward = Ward(tmp_path, "ward-7")
    url = f"https://{OUR_SIDE}:{home.port}"
    forbidden = [
        f"/v1/{path}|{size}|{header}"
        for path in ("control/register-node", "control/start-run", "runtime/acquire-task", "fleet/unregister-node")
        for size, header in (("", ""), ("", "x-forwarded-for"))
    ]
    asked = [f"/v1/fleet/push-object|{LARGEST_BODY + 65536}|", "/v1/fleet/activate-node||", *forbidden]
    with serving(home):
        admit(home, ward.public, None)
        command = [*another_machine, sys.executable, "-c", ASK, str(home.authority_file), url, *asked]
        answers = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
        assert answers[0] in ("413", "closed")
        assert answers[1:] == ["401"] + ["403"] * len(forbidden)
        assert f"Gate: refused to {THEIR_SIDE}, larger than" in (tmp_path / "server.log").read_text()

        # This machine, by the very address that others use.
        trust = ssl.create_default_context(cafile=str(home.authority_file))
        local = httpx.post(f"{url}/v1/control/list-nodes", headers=PROTOBUF, content=b"", verify=trust)
        assert local.status_code == 200

        there = ["--superlink", f"{OUR_SIDE}:{home.port}", "--root-certificates", str(home.authority_file)]
        with ward.node(*there, within=another_machine, key=False) as keyless:
            assert keyless.wait(40) == 1
        assert "[code: 2001] A node needs an admitted key" in ward.log
        with ward.node(*there, within=another_machine):
            wait("online from there", lambda: status(home, "ward-7") == "online")
