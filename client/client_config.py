"""The folder of a client, with its images' place, declared numbers and policy."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError

SITE_FILE = "client.toml"
POLICY_FILE = "policy.toml"
NODE_KEY_FILE = "node.key"
AUTHORITY_FILE = "authority.pem"
LOCK_FILE = "client.lock"
NODE_KEY = "bract-client"
# Set by the launcher: the digest of the bundle that it has checked and runs.
BUNDLE_KEY = "bract-bundle"
SIMULATION_KEY = "bract-simulation"
_FIELDS = {
    "name": str,
    "source": str,
    "path": str,
    "num-images": int,
    "num-groups": int,
    "test-fraction": float,
    "weights": str,
    "superlink": str,
    "authority": str,
    "validation": str,
}
# Fields that came after 0.1.0, with the value that means what a file without the field did.
_ADDED = {"validation": "drop"}


@dataclass(frozen=True)
class Site:
    """A client on a machine of its own.

    Attributes:
        folder: Folder of the client's files.
        name: Name of the client at servers.
        source: Value for `data.source`.
        path: Value for `data.path`.
        num_images: Declared number of training images, a public constant.
        num_groups: Declared number of groups of images, such as patients.
        test_fraction: Share of the images that is held out, if the source has no test set. It is the client's own, so
            that no server can move an image from training to evaluation or back.
        weights: File of the backbone's weights, relative to the folder; empty for the package's or the hub's.
        superlink: Address of the federation's server, `host:port`; empty if it is not known yet.
        authority: File of the authority's certificate, relative to the folder; empty if it is not known yet.
        validation: Value for `data.validation`. It is the client's own, as the test fraction is.
    """

    folder: Path
    name: str
    source: str
    path: str
    num_images: int
    num_groups: int
    test_fraction: float
    weights: str
    superlink: str
    authority: str
    validation: str = "drop"

    @property
    def policy_file(self) -> Path:
        """File of the holder's policy for this client."""
        return self.folder / POLICY_FILE

    @property
    def lock_file(self) -> Path:
        """File that `bract client start` holds locked while the client runs."""
        return self.folder / LOCK_FILE

    @property
    def authority_file(self) -> Path:
        """File of the certificate of the server's authority."""
        return self.folder / self.authority

    @property
    def key_file(self) -> Path:
        """File of the node's private key in OpenSSH's format, mode 0600."""
        return self.folder / NODE_KEY_FILE

    @property
    def public_key_file(self) -> Path:
        """File of the public key that the server's operator admits."""
        return self.folder / f"{Path(NODE_KEY_FILE).stem}.pub"


def check_name(name: str) -> None:
    """Refuse a name that a server cannot show or a ledger cannot look up.

    Raises:
        ConfigError: It is empty, longer than 64 characters or not printable.
    """
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise ConfigError(f"the name {name!r} cannot be used: give 1 to 64 printable characters")


def server_place(address: str) -> tuple[str, int]:
    """Return host and port of a server's address.

    >>> server_place("fl.example.org:9443"), server_place("[::1]:9443")
    (('fl.example.org', 9443), ('::1', 9443))

    Raises:
        ConfigError: The address is not a host and a port.
    """
    host, _, port = address.rpartition(":")
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    plain = bool(name) and not set(name) & set(" /@?#[]") and name.isprintable() and (":" not in name or name != host)
    if not plain or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"the server's address {address!r} cannot be used: write it as HOST:PORT, without https://, such as "
            "fl.example.org:9443"
        )
    return name, int(port)


def load_site(folder: Path) -> Site:
    """Read a client's folder as `bract client init` wrote it.

    Raises:
        ConfigError: The file is missing, or a field is missing, unknown or of the wrong type.
    """
    file = folder / SITE_FILE
    try:
        fields: dict[str, Any] = _ADDED | tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): make it with `bract client init`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file ({error})") from None
    if set(fields) != set(_FIELDS) or any(type(fields[key]) is not kind for key, kind in _FIELDS.items()):
        wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in _FIELDS.items())
        raise ConfigError(f"{file} must hold exactly {wanted}")
    if min(fields["num-images"], fields["num-groups"]) < 1:
        raise ConfigError(f"{file}: num-images and num-groups must be at least 1")
    if not 0 < fields["test-fraction"] < 1:
        raise ConfigError(f"{file}: test-fraction must be above 0 and below 1")
    if fields["validation"] not in ("drop", "train", "test"):
        raise ConfigError(f"{file}: validation must be drop, train or test")
    check_name(fields["name"])
    if fields["superlink"]:
        server_place(fields["superlink"])
    return Site(folder, **{key.replace("-", "_"): value for key, value in fields.items()})
