"""The server's own folder: its layout, and `server.toml`."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

SERVER_FILE = "server.toml"
CONNECTION = "bract"
_FIELDS: dict[str, type] = {"host": str, "port": int, "names": list, "days": int}


@dataclass(frozen=True)
class ServerHome:
    """One server on this machine.

    Attributes:
        folder: Where everything of it lies; absolute.
        host: Address it listens at; `0.0.0.0` is every IPv4 address of this machine, `::` every IPv6 address.
        port: Port it listens at, 1 to 65535.
        names: DNS names and IP addresses by which clients reach it.
        days: How long a new certificate of it is valid.
    """

    folder: Path
    host: str
    port: int
    names: tuple[str, ...]
    days: int

    @property
    def settings_file(self) -> Path:
        """`server.toml`."""
        return self.folder / SERVER_FILE

    @property
    def authority_file(self) -> Path:
        """Certificate of the authority: every client gets a copy of it."""
        return self.folder / "ca.pem"

    @property
    def authority_key_file(self) -> Path:
        """Private key of the authority; mode 0600, never leaves this machine."""
        return self.folder / "ca.key"

    @property
    def certificate_file(self) -> Path:
        """Certificate that the server shows."""
        return self.folder / "server.pem"

    @property
    def key_file(self) -> Path:
        """Private key of that certificate; mode 0600."""
        return self.folder / "server.key"

    @property
    def clients(self) -> Path:
        """Keys of the clients that were admitted, one file each."""
        return self.folder / "clients"

    @property
    def revoked(self) -> Path:
        """Keys of the clients that were revoked."""
        return self.clients / "revoked"

    @property
    def flower(self) -> Path:
        """Flower's own settings and state: FLWR_HOME."""
        return self.folder / "flwr"

    @property
    def database(self) -> Path:
        """Flower's state: nodes, runs, and messages on their way."""
        return self.folder / "superlink.sqlite"

    @property
    def runs(self) -> Path:
        """Where runs leave their results."""
        return self.folder / "runs"

    @property
    def control_host(self) -> str:
        """Address at which this machine itself reaches the server."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def control_address(self) -> str:
        """The same with its port, as `host:port`."""
        return f"[{self.control_host}]:{self.port}" if ":" in self.control_host else f"{self.control_host}:{self.port}"


def settings_text(home: ServerHome) -> str:
    """What is written to `server.toml`."""
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
            "",
        ]
    )


def connection_text(home: ServerHome) -> str:
    """What is written to `flwr/config.toml`, so that Flower's own commands find the server too."""
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
        folder: As given to `bract server init`.

    Raises:
        ConfigError: No server lies there, or `server.toml` is not what it must be; says what is wrong.
    """
    where = folder.expanduser().resolve()
    file = where / SERVER_FILE
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is no server's folder: make one with `bract server init {folder}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    wrong = [key for key in {*values, *_FIELDS} if type(values.get(key)) is not _FIELDS.get(key)]
    if wrong:
        raise ConfigError(f"{file}: wrong, missing or unknown: {', '.join(sorted(wrong))}; it has {', '.join(_FIELDS)}")
    return checked(ServerHome(where, values["host"], values["port"], tuple(values["names"]), values["days"]))


def checked(home: ServerHome) -> ServerHome:
    """The same home, if its settings can be used.

    Raises:
        ConfigError: The port is not 1 to 65535, or there is no host, or a name is not text.
    """
    if not 1 <= home.port <= 65535:
        raise ConfigError(f"port {home.port}: 1 to 65535 are possible")
    if not home.host or not _are_texts(home.names):
        raise ConfigError(f"{home.settings_file}: host and names are text, and host is not empty")
    return home


def _are_texts(names: Sequence[object]) -> bool:
    return all(isinstance(name, str) and name for name in names)
