"""A SuperLink as a real server has it: TLS with a certificate of its own authority, and node keys."""

import datetime
import ipaddress
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.support.network.federation import environment, free_port, process, wait_for

# A client, as `bract client start` starts it: the folder is the one argument.
START = (
    "import sys\n"
    "from pathlib import Path\n"
    "from rich.console import Console\n"
    "from client.runtime.start import start_client\n"
    "sys.exit(start_client(Path(sys.argv[1]), Console()))\n"
)


def write_certificates(folder: Path) -> Path:
    """An authority and a server's certificate for loopback; gives the authority's file."""
    folder.mkdir(parents=True, exist_ok=True)
    own, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("authority", own, own, None)
    server = _certificate("server", key, own, authority)
    (folder / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "ca.pem"


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None
) -> x509.Certificate:
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
    return builder.sign(signer, SHA256())


@contextmanager
def secure_link(home: Path, address: str, public_keys: Sequence[Path]) -> Iterator[Path]:
    """A SuperLink with TLS that admits these keys; gives the authority's file, see `write_certificates`."""
    env, port = environment(home), address.rpartition(":")[2]
    (home / "flwr").mkdir(parents=True, exist_ok=True)
    link = ["flower-superlink", "--enable-supernode-auth", "--host", "127.0.0.1", "--port", port]
    link += ["--ssl-certfile", str(home / "server.pem"), "--ssl-keyfile", str(home / "server.key")]
    link += ["--ssl-ca-certfile", str(home / "ca.pem")]
    with process(link, home / "superlink.log", env):
        wait_for(address)
        entry = {"address": address, "root-certificates": str(home / "ca.pem")}
        (home / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "bract", "bract": entry}}))
        for key in public_keys:
            subprocess.run(
                ["flwr", "supernode", "register", str(key), "bract"], env=env, check=True, capture_output=True
            )
        yield home / "ca.pem"


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"
