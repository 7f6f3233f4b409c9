"""Servers that let in whom they should not: keys, certificates, requests, late and returning clients."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.setup import ca_certificate, node_key
from common.errors import ConfigError
from server.deployment import (
    admission,
    certificates,
    client_keys,
    setup,
    start_checks,
    superlink_control,
)
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Node
from server.rounds.node_registry import NodeRegistry
from tests.mutants.faults import planted
from tests.server.deployment import test_certificates as certified
from tests.server.deployment import test_client_keys as admitted
from tests.server.deployment import test_setup as servers


class _Server:
    """A stand-in of the running server, which remembers its nodes."""

    def __init__(self) -> None:
        self.known: list[Node] = []
        self.removed: list[int] = []

    def nodes(self) -> list[Node]:
        return self.known

    def register(self, key: client_keys.PublicKey, name: str) -> int:
        self.known.append(Node(7, key.pem, "registered", "", "", name))
        return 7

    def unregister(self, node: int) -> None:
        self.removed.append(node)
        self.known = [Node(n.node_id, n.pem, UNREGISTERED, "", "", n.name) for n in self.known]


def _key(file: Path) -> Path:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    file.write_bytes(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" ward-7\n")
    return file


def a_revoked_key_stays_out(home: ServerHome, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, forgotten = _Server(), []

    @contextmanager
    def control(_: ServerHome) -> Any:
        yield server

    monkeypatch.setattr(admission, "control", control)
    monkeypatch.setattr(admission, "forget_key", lambda _, key: forgotten.append(key.line) or server.known.clear())
    key = _key(tmp_path / "ward-7.pub")
    assert admission.admit(home, key, None).node_id == 7
    (stored,) = home.clients.glob("*.pub")
    assert stored.stat().st_mode & 0o077 == 0
    (own_home / "server").mkdir(parents=True)
    nodes = NodeRegistry(own_home / "server" / "nodes.jsonl")
    nodes.check(7, "ward-7", "")
    nodes.check(8, "ward-8", "")
    assert admission.revoke(home, "ward-7").status == "revoked"
    assert server.removed == [7]
    assert not [*home.clients.glob("*.pub")]
    left = NodeRegistry(own_home / "server" / "nodes.jsonl")
    assert left.owns(9, "ward-7"), "its name is free"
    assert not left.owns(9, "ward-8")
    with pytest.raises(ConfigError, match="was revoked"):
        admission.admit(home, key, "another-name")
    for file in home.revoked.glob("*.pub"):
        file.unlink()  # Flower's database still knows it
    with pytest.raises(ConfigError, match="was revoked"):
        admission.admit(home, key, None)
    assert forgotten == []
    assert admission.admit(home, key, None, again=True).node_id == 7
    assert len(forgotten) == 1


_REVOKED = a_revoked_key_stays_out
planted(
    _REVOKED,
    admission.admit,
    {
        "a revoked key that is admitted": ("(revoked_files or len(nodes) > (node is not None)) and not again", "False"),
        "a revoked key by its file alone": ("(revoked_files or len(nodes) > (node is not None))", "revoked_files"),
    },
)
planted(
    _REVOKED,
    admission.revoke,
    {
        "a revoked node that goes on": ("server.unregister(node.node_id)", "pass"),
        "a revoked node that keeps its name": (
            'forget_node(bract_home() / "server" / NODES_FILE, node.node_id)',
            "pass",
        ),
    },
)
planted(
    _REVOKED,
    admission._active,
    {
        "a revoked key that nobody remembers": ("node.status != UNREGISTERED", "True"),
    },
)
planted(
    _REVOKED,
    admission.admit,
    {
        "a key's file that others can read": ("mode=0o600", "mode=0o644"),
    },
)
_ONCE = admitted.test_names_and_keys_are_admitted_once
planted(
    _ONCE,
    admission._check_free,
    {
        "one key under two names": ("if same_key and stored.stem != name:", "if False:"),
        "two keys under one name": ("if stored.stem == name and not same_key:", "if False:"),
    },
)


def a_key_file_holds_a_public_key_of_the_right_kind(tmp_path: Path) -> None:
    file = tmp_path / "ward.pub"
    private = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(ConfigError, match="PRIVATE key"):
        client_keys.read_public_key(file)
    other = ec.generate_private_key(ec.BrainpoolP256R1()).public_key()
    file.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="another kind"):
        client_keys.read_public_key(file)
    for name in ("ward\n", "../ward", "ward 7", "w" * 65, ""):
        with pytest.raises(ConfigError, match="use 1 to 64"):
            client_keys.check_client_name(name)


_KEY_FILE = a_key_file_holds_a_public_key_of_the_right_kind
planted(
    _KEY_FILE,
    client_keys.read_public_key,
    {
        "a private key that was sent": ('b"PRIVATE KEY" in content', "False"),
        "a key on any curve": (' or not key.curve.name.startswith("secp")', ""),
    },
)
planted(
    _KEY_FILE,
    client_keys.check_client_name,
    {
        "a client's name that goes on": ("_NAME.fullmatch(name)", "_NAME.match(name)"),
    },
)


def a_clients_own_files_are_of_the_right_kind(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    for curve in (ec.SECP256R1(), ec.SECP521R1()):
        key = ec.generate_private_key(curve)
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        with pytest.raises(ConfigError, match="another kind"):
            node_key.read_node_key(file)
    good, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    (tmp_path / "node.pub").write_bytes(node_key.public_line(good, "x"))
    assert node_key.is_public_half(tmp_path / "node.pub", good)
    assert not node_key.is_public_half(tmp_path / "node.pub", other)
    authority = certificates.new_authority("x")
    server = certificates.new_server_certificate(authority, [], days=9)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    assert len(ca_certificate.read_authority(ca)) == 1
    for content, said in ((server.certificate, "may not sign"), (authority.certificate + authority.key, "private key")):
        ca.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            ca_certificate.read_authority(ca)


_OWN = a_clients_own_files_are_of_the_right_kind
planted(
    _OWN,
    node_key.read_node_key,
    {
        "a node's key on any curve": (" or not isinstance(key.curve, ec.SECP384R1)", ""),
    },
)
planted(
    _OWN,
    node_key.is_public_half,
    {
        "the public half of any key": (
            "return public == key.public_key()",
            "return type(public) is type(key.public_key())",
        ),
    },
)
planted(
    _OWN,
    ca_certificate._may_sign,
    {
        "an authority that may not sign": ("value.ca", "value is not None"),
    },
)
planted(
    _OWN,
    ca_certificate.read_authority,
    {
        "an authority with its private key": ('b"PRIVATE KEY" in content', "False"),
    },
)


def a_start_is_refused(home: ServerHome) -> None:
    """Each fault of a server's folder by itself, and the folder made good again after it."""
    marks = [mark for mark in servers.test_start_is_refused.pytestmark if mark.name == "parametrize"]
    kept = {file: (file.read_bytes(), file.stat().st_mode) for file in home.folder.iterdir() if file.is_file()}
    for spoil, says in marks[0].args[1]:
        servers.test_start_is_refused(home, spoil, says)
        for file, (content, mode) in kept.items():
            file.chmod(0o600)
            file.write_bytes(content)
            file.chmod(mode)


planted(
    a_start_is_refused,
    start_checks._check_private,
    {
        "a server's key that its group can read": ("mode & 0o077", "mode & 0o007"),
    },
)
planted(
    a_start_is_refused,
    start_checks.check_start,
    {
        "an authority's key that others can read": ("(home.authority_key_file, home.key_file)", "(home.key_file,)"),
    },
)
planted(
    a_start_is_refused,
    start_checks._check_certificate,
    {
        "a certificate of another authority": ("certificate.verify_directly_issued_by(authority)", "pass"),
        "a certificate of another key": ("key.public_key() != certificate.public_key()", "False"),
        "a certificate that has ended": ("now >= certificate.not_valid_after_utc", "False"),
        "a certificate that has not begun": ("now < certificate.not_valid_before_utc", "False"),
    },
)


def a_new_server_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o755)
    home = setup.make_home(folder, names=["fl.example.org"], port=9443, days=9)
    setup.renew(folder, names=["fl2.example.org"], days=None)
    assert home.folder.stat().st_mode & 0o077 == 0
    assert [file.name for file in home.folder.rglob("*") if file.is_file() and file.stat().st_mode & 0o077] == []


planted(
    a_new_server_is_closed_to_others,
    setup._fill,
    {
        "a server's keys that others can read": ("durable=True, mode=0o600", "durable=True, mode=0o644"),
        "a server's folder that others can open": ("home.folder.chmod(0o700)", "pass"),
    },
)
planted(
    a_new_server_is_closed_to_others,
    setup.renew,
    {
        "a renewed key that others can read": (
            "write_atomic(home.key_file, server.key, durable=True, mode=0o600)",
            "write_atomic(home.key_file, server.key, durable=True, mode=0o644)",
        ),
    },
)


def a_certificate_signs_what_it_may() -> None:
    authority = certificates.new_authority("x")
    certified.test_authority_signs_servers_and_nothing_below(authority)
    certified.test_server_cannot_sign_another_server(authority)
    certified.test_certificate_is_refused_for_other_names(authority, "other.example.org")
    certified.test_certificate_never_outlives_its_authority()


planted(
    a_certificate_signs_what_it_may,
    certificates.new_authority,
    {
        "an authority that makes authorities": ("path_length=0", "path_length=None"),
    },
)
planted(
    a_certificate_signs_what_it_may,
    certificates.new_server_certificate,
    {
        "a certificate that outlives its authority": (
            "min(start + _BACKDATED + timedelta(days=days), issuer.not_valid_after_utc)",
            "start + _BACKDATED + timedelta(days=days)",
        ),
        "a certificate for every name": ("_alternatives(names)", "_alternatives([*names, 'other.example.org'])"),
    },
)


def the_command_line_talks_with_its_own_server_alone(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    from flwr.supercore import control

    asked: list[ssl.SSLContext] = []

    class Client:
        def __init__(self, _: str, *, verify: ssl.SSLContext) -> None:
            asked.append(verify)

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(control, "ControlHttpClient", Client)
    with superlink_control.control(home):
        pass
    (trust,) = asked
    assert isinstance(trust, ssl.SSLContext)
    assert (trust.verify_mode, trust.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(trust.get_ca_certs()) == 1


_TALK = the_command_line_talks_with_its_own_server_alone
planted(
    _TALK,
    superlink_control.control,
    {
        "TLS that verifies nothing": ("verify=trust", "verify=False"),
        "TLS with any host": ("ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)", "ssl._create_unverified_context()"),
        "TLS with every authority of this machine": (
            "ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)",
            "ssl.create_default_context()",
        ),
    },
)
