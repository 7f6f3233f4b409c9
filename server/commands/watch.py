"""Command that shows a run while it goes on."""

import os
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.errors import ConfigError
from common.system.console import plain_errors

WATCH_HELP = """Show a run, or a federation with its newest run, in the browser while it goes on.

DIR is a run's folder or a server's. The page is the report, with each round a moment after its end. It is read-only,
and this machine alone can open it, at the address that is printed. Ctrl-C ends the page, not the run.

Examples:

  bract watch runs/NAME

  bract watch federation
"""
# Lower than that of a run, which the page must not slow down.
_PRIORITY = 10
_SECONDS_TO_LEAVE = 1


def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, or of a server.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the page; a free one if 0.")] = 0,
) -> None:
    """Show a run while it goes on.

    Raises:
        ConfigError: The port cannot be used; it is printed without a traceback.
    """
    import uvicorn

    from server.reporting.live.live_app import LOOPBACK, live_app
    from server.reporting.live.watched_folder import WatchedFolder

    with plain_errors("The page is closed. The run goes on."):
        watched = WatchedFolder(folder)
        try:
            listening = socket.create_server((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot be used ({error.strerror})") from None
        token, port = secrets.token_urlsafe(32), listening.getsockname()[1]
        Console().print(
            f"Page     http://{LOOPBACK}:{port}/{token}/\nCtrl-C closes it.",
            highlight=False, markup=False, emoji=False, soft_wrap=True,
        )  # fmt: skip
        if hasattr(os, "nice"):
            os.nice(_PRIORITY)
        config = uvicorn.Config(
            live_app(watched, token=token, port=port),
            log_level="critical", access_log=False, proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_LEAVE,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])
