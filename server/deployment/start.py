"""The command that runs a server, and the surroundings it runs in."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from common.errors import ConfigError
from common.system.files import write_atomic
from server.deployment.server_folder import ServerHome, connection_text

# Flower's older gRPC servers would listen at ports of their own, where no gate stands.
_NEVER = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FLWR_DATABASE")


def start_command(home: ServerHome) -> list[str]:
    """The exact command: Flower's SuperLink behind the gate, over TLS, for admitted keys only."""
    command = [sys.executable, "-P", "-m", "server.deployment.superlink_main"]
    command += ["--host", home.host, "--port", str(home.port)]
    command += ["--ssl-ca-certfile", str(home.authority_file)]
    command += ["--ssl-certfile", str(home.certificate_file), "--ssl-keyfile", str(home.key_file)]
    command += ["--enable-supernode-auth", "--database", str(home.database)]
    return [*command, "--disable-runtime-dependency-installation"]


def start_changes(home: ServerHome, environment: Mapping[str, str]) -> dict[str, str]:
    """What the server's environment has beyond that of the shell.

    Args:
        home: The server.
        environment: The shell's; PATH and NO_PROXY are extended, the rest (BRACT_HOME too) stays as it is.
    """
    return {
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # The server starts flower-superexec and flwr-serverapp by name.
        "PATH": os.pathsep.join(filter(None, [str(Path(sys.executable).parent), environment.get("PATH")])),
        # Its own processes reach it at this address; no proxy can.
        "NO_PROXY": ",".join(filter(None, [environment.get("NO_PROXY"), home.control_host])),
    }


def run_server(home: ServerHome) -> NoReturn:
    """Become the server: this process is replaced, so that signals reach it and nothing is left between.

    Its working directory is the server's folder, where runs leave their results in `runs`; what it writes is for
    this user only.

    Raises:
        ConfigError: The settings for Flower cannot be written, or the command cannot be run.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NEVER}
    command = start_command(home)
    try:
        write_atomic(home.flower / "config.toml", connection_text(home).encode(), durable=True, mode=0o600)
        os.chdir(home.folder)
        os.umask(0o077)
        os.execve(command[0], command, environment | start_changes(home, os.environ))  # noqa: S606
    except OSError as error:
        raise ConfigError(f"{home.folder}: the server cannot start ({error.strerror})") from None
