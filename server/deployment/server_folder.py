"""Folder of a server with its settings file `server.toml`."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from server.deployment.superlink_api import DEFAULT_REPLY_MEGABYTES

SERVER_FILE = "server.toml"
CONNECTION = "bract"
_FIELDS: dict[str, type] = {"host": str, "port": int, "names": list, "days": int, "reply-megabytes": int}
# Settings that a file may leave out, with their defaults.
_OPTIONAL = {"reply-megabytes": DEFAULT_REPLY_MEGABYTES}


@dataclass(frozen=True)
class ServerHome:
    """Folder and settings of one server on this machine.

    Attributes:
        folder: Absolute path of the folder with all files of the server.
        host: Address that it listens at; `0.0.0.0` is every IPv4 address of this machine, `::` every IPv6 address.
        port: Port that it listens at, 1 to 65535.
        names: DNS names and IP addresses by which clients reach it.
        days: Days that a new certificate is valid.
        reply_megabytes: Megabytes of a client's reply beyond four times the message that it answers, at least 1.
    """

    folder: Path
    host: str
    port: int
    names: tuple[str, ...]
    days: int
    reply_megabytes: int = DEFAULT_REPLY_MEGABYTES

    @property
    def settings_file(self) -> Path:
        """Settings file, `server.toml`."""
        return self.folder / SERVER_FILE

    @property
    def authority_file(self) -> Path:
        """Certificate of the authority, of which every client gets a copy."""
        return self.folder / "ca.pem"

    @property
    def authority_key_file(self) -> Path:
        """Private key of the authority, mode 0600."""
        return self.folder / "ca.key"

    @property
    def certificate_file(self) -> Path:
        """Certificate of the server."""
        return self.folder / "server.pem"

    @property
    def key_file(self) -> Path:
        """Private key of the server's certificate, mode 0600."""
        return self.folder / "server.key"

    @property
    def clients(self) -> Path:
        """Folder of the admitted clients' keys, one file each."""
        return self.folder / "clients"

    @property
    def revoked(self) -> Path:
        """Folder of the revoked keys."""
        return self.clients / "revoked"

    @property
    def flower(self) -> Path:
        """Folder of Flower's own settings and state (FLWR_HOME)."""
        return self.folder / "flwr"

    @property
    def database(self) -> Path:
        """Flower's database of nodes, runs and messages."""
        return self.folder / "superlink.sqlite"

    @property
    def runs(self) -> Path:
        """Folder of the runs' results."""
        return self.folder / "runs"

    @property
    def control_host(self) -> str:
        """Address at which this machine itself reaches the server."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def control_address(self) -> str:
        """`host:port` at which this machine itself reaches the server."""
        return f"[{self.control_host}]:{self.port}" if ":" in self.control_host else f"{self.control_host}:{self.port}"


def settings_text(home: ServerHome) -> str:
    """Return the text of `server.toml`."""
    return "\n".join(
        [
            "# One server of a federation, written by `bract server init`.",
            "",
            '# Address to listen at: "0.0.0.0" is every IPv4 address of this machine, "::" every IPv6 address.',
            f"host = {json.dumps(home.host)}",
            "# The one port that clients must reach. `flwr/config.toml` names it too.",
            f"port = {home.port}",
            "# DNS names and IP addresses by which clients reach the server. After a change:",
            "# `bract server init DIR --renew`, and start the server again. Clients keep what they have.",
            f"names = {json.dumps(list(home.names))}",
            "# How long a new certificate is valid.",
            f"days = {home.days}",
            *([f"reply-megabytes = {home.reply_megabytes}"] if home.reply_megabytes != DEFAULT_REPLY_MEGABYTES else []),
            "",
        ]
    )


def connection_text(home: ServerHome) -> str:
    """Return the text of `flwr/config.toml`, by which Flower's own commands find the server."""
    return "\n".join(
        [
            "# For Flower's own commands: FLWR_HOME=this folder. Written anew at each `bract server start`.",
            "[superlink]",
            f"default = {json.dumps(CONNECTION)}",
            "",
            f"[superlink.{CONNECTION}]",
            f"address = {json.dumps(home.control_address)}",
            f"root-certificates = {json.dumps(str(home.authority_file))}",
            "",
        ]
    )


def load_home(folder: Path) -> ServerHome:
    """Read and check a server's folder.

    Args:
        folder: Folder that `bract server init` made.

    Raises:
        ConfigError: The folder does not hold a server, or `server.toml` is wrong.
    """
    absolute = folder.expanduser().resolve()
    file = absolute / SERVER_FILE
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a server's folder: make one with `bract server init {folder}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    values = _OPTIONAL | values
    # Compared by exact type, since True would pass as a port.
    wrong = [key for key in {*values, *_FIELDS} if type(values.get(key)) is not _FIELDS.get(key)]
    if wrong:
        keys = ", ".join(_FIELDS)
        raise ConfigError(f"{file}: wrong, missing or unknown: {', '.join(sorted(wrong))}; it must have {keys}")
    names, extra = tuple(values["names"]), values["reply-megabytes"]
    return checked(ServerHome(absolute, values["host"], values["port"], names, values["days"], extra))


def checked(home: ServerHome) -> ServerHome:
    """Return the same server if its settings are valid.

    Raises:
        ConfigError: The port is not 1 to 65535, the host is empty, a name is not text, or replies may not be long.
    """
    if not 1 <= home.port <= 65535:
        raise ConfigError(f"port {home.port}: a port is 1 to 65535")
    if home.reply_megabytes < 1:
        raise ConfigError(f"{home.settings_file}: reply-megabytes must be at least 1")
    if not home.host or not all(isinstance(name, str) and name for name in home.names):
        raise ConfigError(f"{home.settings_file}: host and names must be text, and host must not be empty")
    return home
