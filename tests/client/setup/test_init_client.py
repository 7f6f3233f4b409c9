"""`bract client init`: the folder, the node's key, the pin, and what is to be done next.

Drives `client.commands.cli`, `client.setup.ca_certificate`, `client.setup.init_report`, `client.setup.node_key`.
"""

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

import bract
from client.client_config import load_site, server_place
from client.setup import init_report
from common.errors import ConfigError
from common.privacy.policy import load_policy
from common.system.app_bundle import bundle_digest, installed_bundle
from tests.support.clients.server_stand_ins import Authority

pytestmark = pytest.mark.usefixtures("own_home")


def init(folder: Path, images: Path, *more: str) -> Result:
    return CliRunner().invoke(bract.app, ["client", "init", str(folder), "--data", str(images), *more])


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    file.write_bytes(Authority().certificate())
    return file


def test_init_makes_a_key_that_only_its_owner_can_read(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "ward"

    assert init(folder, images, "--name", "Ward 7").exit_code == 0

    assert stat.S_IMODE((folder / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private = load_ssh_private_key((folder / "node.key").read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = (folder / "node.pub").read_text()
    assert load_ssh_public_key(public.encode()) == private.public_key()
    assert re.fullmatch(r"ecdsa-sha2-nistp384 \S+ Ward 7\n", public)


def test_the_fingerprint_that_init_prints_is_openssh_s(tmp_path: Path, images: Path) -> None:
    done = init(tmp_path / "ward", images)
    assert re.search(r"^Key +SHA256:[A-Za-z0-9+/]{43}: ", done.stdout, re.M)
    if keygen := shutil.which("ssh-keygen"):
        told = subprocess.run(
            [keygen, "-lf", tmp_path / "ward" / "node.pub"], capture_output=True, check=True, text=True
        )
        assert told.stdout.split()[1] in done.stdout


def test_init_pins_the_installed_bract(tmp_path: Path, images: Path) -> None:
    done = init(tmp_path / "ward", images)

    digest = bundle_digest(installed_bundle())
    assert load_policy(tmp_path / "ward" / "policy.toml").bundle == digest
    assert f"Pin       {digest[:16]}: " in done.stdout


def test_the_policy_that_init_writes_uses_no_old_key(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init(tmp_path / "ward", images)

    load_policy(tmp_path / "ward" / "policy.toml")
    assert "old name" not in caplog.text


def test_init_says_what_to_do_next_and_what_is_still_missing(tmp_path: Path, images: Path) -> None:
    done = init(tmp_path / "ward", images)

    assert [line.split()[0] for line in done.stdout.splitlines()] == (
        ["Client", "Policy", "Ledger", "Key", "Identity", "To", "Pin", "Next", "bract"]
    )
    assert "fill in superlink and authority" in done.stdout
    assert f"Next      bract client check {tmp_path / 'ward'}" in done.stdout
    assert "`bract server admit`" in done.stdout
    assert "back it up" in done.stdout


def test_a_fingerprint_is_printed_as_it_is_whatever_it_spells(
    tmp_path: Path, images: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init_report, "certificate_fingerprint", lambda certificate: "86:AB:CL:66")

    done = init(tmp_path / "ward", images, "--authority", str(authority))

    assert "Authority 86:AB:CL:66: compare" in done.stdout  # rich would make a picture of :AB:


def test_init_takes_the_server_and_its_authority(tmp_path: Path, images: Path, authority: Path) -> None:
    done = init(tmp_path / "ward", images, "--server", "fl.example.org:9443", "--authority", str(authority))

    site = load_site(tmp_path / "ward")
    assert (site.superlink, site.authority_file) == ("fl.example.org:9443", tmp_path / "ward" / "authority.pem")
    certificate = x509.load_pem_x509_certificate(site.authority_file.read_bytes())
    fingerprint = ":".join(f"{byte:02X}" for byte in certificate.fingerprint(SHA256()))
    assert f"Authority {fingerprint}: compare it" in done.stdout
    assert "To do" not in done.stdout


@pytest.mark.parametrize("content", ["a server's", "a private key's", "none"])
def test_init_refuses_an_authority_that_is_none_and_writes_nothing(tmp_path: Path, images: Path, content: str) -> None:
    signs = Authority()
    served = signs.server(tmp_path).read_bytes()
    alone = served[: served.index(b"-----BEGIN PRIVATE")]
    file = tmp_path / "ca.pem"
    file.write_bytes({"a server's": alone, "a private key's": signs.certificate() + served, "none": b"hello"}[content])

    done = init(tmp_path / "ward", images, "--authority", str(file))

    assert done.exit_code == 2
    assert {"a server's": "may not sign", "a private key's": "holds a private key", "none": "no certificate"}[
        content
    ] in " ".join(done.stderr.split())
    assert not (tmp_path / "ward").exists()


@pytest.mark.parametrize(
    "address", ["fl.example.org", "https://fl.example.org:9443", "a:0", "a:70000", ":9443", "::1:9"]
)
def test_init_refuses_an_address_that_is_none(tmp_path: Path, images: Path, address: str) -> None:
    done = init(tmp_path / "ward", images, "--server", address)

    assert done.exit_code == 2
    assert "HOST:PORT" in done.stderr
    assert not (tmp_path / "ward").exists()


def test_an_address_may_be_a_number() -> None:
    assert server_place("[fd00::1]:9443") == ("fd00::1", 9443)
    assert server_place("10.0.0.7:443") == ("10.0.0.7", 443)
    with pytest.raises(ConfigError):
        server_place("fd00::1:9443")


def test_a_policy_that_was_there_stays_and_a_missing_pin_is_told(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "ward"
    folder.mkdir()
    (folder / "policy.toml").write_text("max-epsilon = 2.0\ndelta = 1e-5\n")

    done = init(folder, images)

    assert (folder / "policy.toml").read_text() == "max-epsilon = 2.0\ndelta = 1e-5\n"
    assert "it was there and is left as it is" in done.stdout
    assert "Pin       NONE" in done.stdout
    assert "bract client review" in done.stdout


def test_a_key_that_was_there_stays(tmp_path: Path, images: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    init(first, images)
    second.mkdir()
    (second / "node.key").write_bytes((first / "node.key").read_bytes())
    (second / "node.key").chmod(0o600)

    init(second, images)

    assert (second / "node.key").read_bytes() == (first / "node.key").read_bytes()
    assert (second / "node.pub").read_bytes().split()[:2] == (first / "node.pub").read_bytes().split()[:2]


def test_a_client_is_set_up_once(tmp_path: Path, images: Path) -> None:
    init(tmp_path / "ward", images)
    before = {file: file.read_bytes() for file in (tmp_path / "ward").iterdir()}

    again = init(tmp_path / "ward", images)

    assert again.exit_code == 2
    assert "holds a client already" in again.stderr
    assert {file: file.read_bytes() for file in (tmp_path / "ward").iterdir()} == before
