"""Main program of the server (Flower's SuperLink behind the gate).

`python -m server.deployment.superlink_main` takes the options of `flower-superlink`.
"""

import os
from typing import Any

from server.deployment.superlink_api import DEFAULT_REPLY_MEGABYTES, GRPC_VARIABLES, REPLY_VARIABLE

SERVER_OPTIONS = {
    # Otherwise uvicorn may take a peer's address from a header.
    "proxy_headers": False,
    # Otherwise Ctrl-C waits for ever for connections that are kept open.
    "timeout_graceful_shutdown": 5,
    # It would write a line for each request. Strangers could fill the disk.
    "access_log": False,
}


def install_gate() -> None:
    """Put the gate in front of every app that Flower's SuperLink makes.

    Guarantee: if this returns, the gate is the first to see a request, with the true addresses of its socket.

    Raises:
        FederationError: In this version of Flower the gate would not be in front.
    """
    from flwr.superlink import extensions
    from flwr.superlink import main as superlink_main
    from starlette.middleware import Middleware

    from common.errors import FederationError
    from server.deployment.gate.push_quota import PushQuota
    from server.deployment.request_filter import Gate

    quota = PushQuota(reply_megabytes=int(os.environ.get(REPLY_VARIABLE, DEFAULT_REPLY_MEGABYTES)))
    for name in GRPC_VARIABLES:
        os.environ.pop(name, None)
    others = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(Gate, quota=quota), *others())
    # The server must not start unprotected after a change in Flower, so the place of the gate is checked.
    first = next(iter(superlink_main._get_middleware()), None)
    if getattr(first, "cls", None) is not Gate:
        raise FederationError("this version of Flower has no place for the gate: the server does not start without it")


def main() -> None:
    """Run Flower's `flower-superlink` behind the gate.

    Raises:
        FederationError: In this version of Flower the gate would not be in front.
    """
    import uvicorn

    install_gate()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    run = uvicorn.run

    def run_with_options(*args: Any, **options: Any) -> None:
        run(*args, **(options | SERVER_OPTIONS))

    uvicorn.run = run_with_options
    flower_superlink()


if __name__ == "__main__":
    main()
