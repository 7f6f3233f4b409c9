"""Folder of a client on a machine of its own."""

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
# What the launcher says of the code that it lets run: the digest that it has checked.
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
}


@dataclass(frozen=True)
class Site:
    """Settings of one client on a machine of its own.

    Attributes:
        folder: Where this is written.
        name: What the server calls the client.
        source: As `data.source`.
        path: As `data.path`.
        num_images: Declared number of training images, a public constant.
        num_groups: Declared number of groups of images, such as patients.
        test_fraction: Share of the images that is held out, if the source has no test set: no server may move
            an image from training to evaluation or back.
        weights: File of the backbone's weights, seen from the folder; empty if they are the package's or the hub's.
        superlink: Where the federation's server listens, as `host:port`; empty if this is not known yet.
        authority: File of the certificate that the server's own must be signed by, seen from the folder.
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

    @property
    def policy_file(self) -> Path:
        """The holder's policy for this client."""
        return self.folder / POLICY_FILE

    @property
    def lock_file(self) -> Path:
        """Held locked by `bract client start` while the client runs."""
        return self.folder / LOCK_FILE

    @property
    def authority_file(self) -> Path:
        """Certificate of the authority that signed the server's."""
        return self.folder / self.authority

    @property
    def key_file(self) -> Path:
        """Private key of this client's node in OpenSSH's format."""
        return self.folder / NODE_KEY_FILE

    @property
    def public_key_file(self) -> Path:
        """Public key that the server's operator admits."""
        return self.folder / f"{Path(NODE_KEY_FILE).stem}.pub"


def check_name(name: str) -> None:
    """Refuse a name that cannot be shown or found again.

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
        ConfigError: It is not a host and a port.
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
    """Read what `bract client init` wrote.

    Raises:
        ConfigError: The file is missing, or a field is missing, unknown or of the wrong type.
    """
    file = folder / SITE_FILE
    try:
        found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): make it with `bract client init`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file ({error})") from None
    if set(found) != set(_FIELDS) or any(type(found[key]) is not kind for key, kind in _FIELDS.items()):
        wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in _FIELDS.items())
        raise ConfigError(f"{file} must hold exactly {wanted}")
    if min(found["num-images"], found["num-groups"]) < 1:
        raise ConfigError(f"{file}: num-images and num-groups are at least 1")
    if not 0 < found["test-fraction"] < 1:
        raise ConfigError(f"{file}: test-fraction is between 0 and 1")
    check_name(found["name"])
    if found["superlink"]:
        server_place(found["superlink"])
    return Site(folder, **{key.replace("-", "_"): value for key, value in found.items()})
