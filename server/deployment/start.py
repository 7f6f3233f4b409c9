"""Command and environment of the server's process."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from common.errors import ConfigError
from common.system.files import write_atomic
from server.deployment.server_folder import ServerHome, connection_text
from server.deployment.superlink_api import GRPC_VARIABLES, REPLY_VARIABLE


def start_command(home: ServerHome) -> list[str]:
    """Return the command that starts the SuperLink with gate, TLS and node keys."""
    command = [sys.executable, "-P", "-m", "server.deployment.superlink_main"]
    command += ["--host", home.host, "--port", str(home.port)]
    command += ["--ssl-ca-certfile", str(home.authority_file)]
    command += ["--ssl-certfile", str(home.certificate_file), "--ssl-keyfile", str(home.key_file)]
    command += ["--enable-supernode-auth", "--database", str(home.database)]
    return [*command, "--disable-runtime-dependency-installation"]


def start_changes(home: ServerHome, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the server's process has in addition to the shell's.

    Args:
        home: Folder of the server.
        environment: Variables of the shell. PATH and NO_PROXY are extended, all others (also BRACT_HOME) stay.
    """
    return {
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        REPLY_VARIABLE: str(home.reply_megabytes),
        # The SuperLink starts flower-superexec and flwr-serverapp by name.
        "PATH": os.pathsep.join(filter(None, [str(Path(sys.executable).parent), environment.get("PATH")])),
        # Its own processes connect to it at this address, which a proxy would look for on its own machine.
        "NO_PROXY": ",".join(filter(None, [environment.get("NO_PROXY"), home.control_host])),
    }


def run_server(home: ServerHome) -> NoReturn:
    """Replace this process by the server.

    Signals then reach the server itself. Its working directory is the server's folder, where runs write their
    results below `runs`. Other users cannot read the files that it writes.

    Raises:
        ConfigError: The settings for Flower cannot be written, or the command cannot be run.
    """
    # FLWR_DATABASE would move the database out of the server's folder.
    removed = (*GRPC_VARIABLES, "FLWR_DATABASE")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    command = start_command(home)
    try:
        write_atomic(home.flower / "config.toml", connection_text(home).encode(), durable=True, mode=0o600)
        os.chdir(home.folder)
        os.umask(0o077)
        # The new program would lose the text that is still buffered.
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, environment | start_changes(home, os.environ))  # noqa: S606
    except OSError as error:
        raise ConfigError(f"{home.folder}: the server cannot start ({error.strerror})") from None
