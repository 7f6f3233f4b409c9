"""The keys of clients: what is taken for one, and what the server's folder says of them without a server.

Drives `server.deployment.admission`, `server.deployment.client_list`.
"""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

import bract
from common.errors import ConfigError, FederationError
from server.deployment.admission import admit, revoke
from server.deployment.client_keys import check_client_name, read_public_key
from server.deployment.client_list import list_clients
from server.deployment.server_folder import ServerHome
from tests.support.server.server_folders import contents

RUNNER = CliRunner()


def public_key(file: Path, comment: str = "", curve: Any = None) -> Path:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    file.write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {comment}\n".encode())
    return file


def test_public_key_has_the_fingerprint_that_ssh_keygen_shows(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text(
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBL9+lBAwfwW8enjEUh52WP/fy0Jp"
        "XPRNlR1oP4lF/SZKfwiWBKuZGck5lw1RAJ6E1IAunm9gi2s82Mw6S6ZG8LLxMNa5rHGPdGjZfLoMHfjnwcAMPJ0BvK28aKvBkqFkLw=="
        " ward 7\n"
    )

    key = read_public_key(tmp_path / "a.pub")

    assert key.fingerprint == "SHA256:stAArg4Nhx+IcLzqYQUC4waW36bWiq+qvpIf1SO+xFE"  # by `ssh-keygen -lf`
    assert key.comment == "ward 7"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_public_key_is_the_same_in_each_format(tmp_path: Path, curve: Any) -> None:
    key = ec.generate_private_key(curve).public_key()
    (tmp_path / "a.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" ward 7\n")
    (tmp_path / "a.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    ssh, pem = read_public_key(tmp_path / "a.pub"), read_public_key(tmp_path / "a.pem")

    assert (ssh.line, ssh.pem, ssh.fingerprint) == (pem.line, pem.pem, pem.fingerprint)
    assert (ssh.comment, pem.comment) == ("ward 7", "")


@pytest.mark.parametrize("form", [PrivateFormat.OpenSSH, PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_private_key_is_burnt(home: ServerHome, tmp_path: Path, form: PrivateFormat) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, form, NoEncryption())
    (tmp_path / "ward-7.pub").write_bytes(key)

    with pytest.raises(ConfigError, match=r"PRIVATE key.*compromised"):
        admit(home, tmp_path / "ward-7.pub", None)

    assert not list(home.clients.glob("*.pub"))


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed.pub").write_bytes(other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (tmp_path / "text.pub").write_text("hello")
    (tmp_path / "empty.pub").touch()
    (tmp_path / "binary.pub").write_bytes(bytes(range(256)) * 1000)

    for name, says in (
        ("ed", "NIST curve"),
        ("text", "not a public"),
        ("empty", "not a public"),
        ("binary", "not a public"),
    ):
        with pytest.raises(ConfigError, match=says):
            read_public_key(tmp_path / f"{name}.pub")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key(tmp_path / "none.pub")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-x", "a b", "x" * 65, "ward\n7", "wärd"])
def test_impossible_client_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="use 1 to 64"):
        check_client_name(name)


@pytest.mark.parametrize(
    ("file", "comment", "name"),
    [("ward-8", "x y", "ward-8"), ("node", "ward 7", "ward-7"), ("node", "", "node"), ("node", "w@x", None)],
)
def test_name_is_the_file_or_what_a_client_made_by_us_says(
    home: ServerHome, tmp_path: Path, file: str, comment: str, name: str | None
) -> None:
    key = public_key(tmp_path / f"{file}.pub", comment)
    if name is None:
        with pytest.raises(ConfigError, match="use 1 to 64"):
            admit(home, key, None)
        return
    public_key(home.clients / f"{name}.pub")

    with pytest.raises(ConfigError, match=f"another key is admitted as '{name}'"):
        admit(home, key, None)


def test_names_and_keys_are_admitted_once(home: ServerHome, tmp_path: Path) -> None:
    here = public_key(home.clients / "ward-7.pub")
    (tmp_path / "again.pub").write_bytes(here.read_bytes())
    other = public_key(tmp_path / "ward-7.pub")

    with pytest.raises(ConfigError, match="admitted already, as 'ward-7'"):
        admit(home, tmp_path / "again.pub", None)
    with pytest.raises(ConfigError, match="another key is admitted as 'ward-7'"):
        admit(home, other, None)


def test_without_a_server_nothing_is_admitted_or_revoked(home: ServerHome, tmp_path: Path) -> None:
    public_key(home.clients / "ward-7.pub")
    before = contents(home.folder)

    with pytest.raises(FederationError, match=r"no server runs at .*`bract server start"):
        admit(home, public_key(tmp_path / "ward-8.pub"), None)
    with pytest.raises(FederationError, match="no server runs at"):
        revoke(home, "ward-7")
    with pytest.raises(ConfigError, match="no client is called 'ward-9'; admitted are: ward-7"):
        revoke(home, "ward-9")

    assert contents(home.folder) == before


def test_without_a_server_the_list_is_what_its_files_say(home: ServerHome) -> None:
    public_key(home.clients / "ward-7.pub")
    public_key(home.revoked / "ward-8.abc.pub", "ward-8")

    clients, runs = list_clients(home)
    shown = RUNNER.invoke(bract.app, ["server", "list", "--server", str(home.folder)])

    assert not runs
    assert [(client.name, client.status) for client in clients] == [("ward-7", "unknown"), ("ward-8", "revoked")]
    assert "is not running. This list comes from its files" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
