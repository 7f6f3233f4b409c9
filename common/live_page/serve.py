"""Command line's side of a live page."""

import os
import secrets
import socket

from rich.console import Console

from common.errors import ConfigError
from common.live_page.live_app import LOOPBACK, live_app
from common.live_page.viewers import Watched

# Lower than that of a run or a client, which the page must not slow down.
_PRIORITY = 10
_SECONDS_TO_LEAVE = 1


def serve_page(watched: Watched, *, port: int) -> None:
    """Print a live page's address and serve it until the process is interrupted.

    Args:
        watched: What the page shows.
        port: TCP port on loopback; a free one if 0.

    Raises:
        ConfigError: The port cannot be used.
    """
    import uvicorn

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
