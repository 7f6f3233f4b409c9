"""What Flower's SuperNode would tell a server beside each reply, and does not."""

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode import fleet_http_client

from client.runtime.supernode_api import omit_durations
from common.errors import FederationError


class Recorder(fleet_http_client.FleetHttpClient):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[PushMessagesRequest] = []

    def _unary_unary(self, **call: object) -> None:  # type: ignore[override]
        self.sent.append(call["request"])  # type: ignore[arg-type]


def push() -> PushMessagesRequest:
    client = Recorder()
    client.PushMessages(PushMessagesRequest(node=Node(node_id=7), clientapp_runtime_list=[1.25]))
    return client.sent[0]


def test_no_duration_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = fleet_http_client.FleetHttpClient.PushMessages
    monkeypatch.setattr(fleet_http_client.FleetHttpClient, "PushMessages", theirs)
    before = push()

    omit_durations()

    after = push()
    assert list(before.clientapp_runtime_list) == [1.25]  # so Flower still says it, and this is what must not leave
    assert list(after.clientapp_runtime_list) == []
    assert after.node.node_id == 7


def test_a_flower_that_says_durations_elsewhere_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        DESCRIPTOR = type("Descriptor", (), {"fields_by_name": {}})

    monkeypatch.setattr("flwr.proto.fleet_pb2.PushMessagesRequest", Other)

    with pytest.raises(FederationError, match="does not start"):
        omit_durations()
