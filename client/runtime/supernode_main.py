"""Flower's SuperNode, as a client runs it: `python -m client.runtime.supernode_main` takes its own options.

It says no durations: Flower's would tell the server, beside each reply, how long the client computed.
"""

import os
from typing import Any

from client.runtime.process_lifetime import watch_for

PARENT = "BRACT_PARENT"


def say_no_durations() -> None:
    """Leave out of every message of this process' SuperNode how long its app took.

    Raises:
        FederationError: Flower has changed, and they might be said in another place.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient

    from common.errors import FederationError

    if "clientapp_runtime_list" not in PushMessagesRequest.DESCRIPTOR.fields_by_name:
        raise FederationError("this version of Flower says durations in another place: the client does not start")
    push = FleetHttpClient.PushMessages

    def push_without(client: FleetHttpClient, request: PushMessagesRequest) -> Any:
        request.ClearField("clientapp_runtime_list")
        return push(client, request)

    setattr(FleetHttpClient, push.__name__, push_without)  # one of its methods, for all its objects


def main() -> None:
    """Run Flower's `flower-supernode`; it ends with the process that BRACT_PARENT names, where that is set.

    Raises:
        FederationError: See `say_no_durations`.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        watch_for(int(parent))
    say_no_durations()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
