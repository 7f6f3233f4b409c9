"""Flower's SuperLink with the gate in front: `python -m server.deployment.superlink_main` takes its own options."""

import os
from typing import Any

SERVER_OPTIONS = {
    # Else a peer's address is taken from a header, if a peer that is believed sends one.
    "proxy_headers": False,
    # Else Ctrl-C waits for ever for connections that are kept open.
    "timeout_graceful_shutdown": 5,
    # A line for each request, also a stranger's: nodes ask every three seconds, and strangers could fill the disk.
    "access_log": False,
}


def install_gate() -> None:
    """Put the gate in front of every app that Flower's SuperLink makes in this process.

    Guarantee: if this returns, the first thing a request meets is the gate, with the true ends of its socket.

    Raises:
        FederationError: Flower has changed, and the gate would not be in front.
    """
    from flwr.superlink import extensions
    from flwr.superlink import main as superlink_main
    from starlette.middleware import Middleware

    from common.errors import FederationError
    from server.deployment.request_filter import Gate

    # Flower's older gRPC servers would listen at ports of their own, where no gate stands.
    for name in ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"):
        os.environ.pop(name, None)
    others = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(Gate), *others())
    first = next(iter(superlink_main._get_middleware()), None)
    if getattr(first, "cls", None) is not Gate:
        raise FederationError("this version of Flower has no place for the gate: the server does not start without it")


def main() -> None:
    """Run Flower's `flower-superlink` behind the gate.

    Raises:
        FederationError: Flower has changed, and the gate would not be in front.
    """
    import uvicorn

    install_gate()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    run = uvicorn.run

    def run_ours(*given: Any, **options: Any) -> None:
        run(*given, **(options | SERVER_OPTIONS))

    uvicorn.run = run_ours
    flower_superlink()


if __name__ == "__main__":
    main()
