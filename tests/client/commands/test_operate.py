"""`bract client check`: what it shows, what it asks the server, and what it leaves alone."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import FlowerError
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet.fleet_handlers import activate_node
from typer.testing import CliRunner

import bract
from client.checks.connection import MAX_AHEAD, MAX_BEHIND
from common.ledger.data_holder import own_holder
from tests.support.clients.healthy_client import Bed
from tests.support.clients.own_clients import write_images
from tests.support.clients.server_stand_ins import UNKNOWN
from tests.support.ledger.builders import PLAN, holding, release


def test_a_client_in_good_health_has_nothing_to_mend(bed: Bed) -> None:
    found = bed.check()

    assert {finding.state for finding in found.values()} == {"ok"}
    here = ["folder", "running", "policy", "pin", "node key", "data", "backbone", "disk", "ledger", "budget"]
    assert [*found] == [*here, "server", "TLS", "clock", "admission"]
    assert "40 training images can be used, 40 are declared; bright 20, dark 20" in found["data"].found


def test_check_shows_lines_and_says_by_its_exit_code_whether_something_fails(bed: Bed) -> None:
    good = CliRunner().invoke(bract.app, ["client", "check", str(bed.folder)])
    bed.server.answer = UNKNOWN
    bad = CliRunner().invoke(bract.app, ["client", "check", str(bed.folder)])
    as_json = CliRunner().invoke(bract.app, ["client", "check", str(bed.folder), "--json"])
    nobody = CliRunner().invoke(bract.app, ["client", "check", str(bed.root)])

    assert (good.exit_code, bad.exit_code, as_json.exit_code, nobody.exit_code) == (0, 1, 1, 2)
    assert "14 checks, nothing fails" in good.stdout
    assert "FAIL  admission  the server does not know" in bad.stdout
    assert "1 of 14 checks fail" in bad.stdout
    assert max(map(len, bad.stdout.splitlines())) <= 80
    rows = json.loads(as_json.stdout)
    assert all(set(row) == {"check", "state", "found", "remedy"} for row in rows)
    assert [row["check"] for row in rows if row["state"] == "FAIL"] == ["admission"]


def test_check_writes_nothing_into_the_ledger_or_the_folder(bed: Bed) -> None:
    ledger = bed.let_go()
    before = (ledger.read_bytes(), sorted(bed.folder.iterdir()), sorted(ledger.parent.iterdir()))

    bed.check()

    assert (ledger.read_bytes(), sorted(bed.folder.iterdir()), sorted(ledger.parent.iterdir())) == before


def test_check_tells_the_server_the_public_key_and_nothing_else(bed: Bed) -> None:
    bed.check()

    [(path, _, body)] = bed.server.asked
    message = ActivateNodeRequest.FromString(body)
    assert path == "/v1/fleet/activate-node"
    assert message == ActivateNodeRequest(public_key=message.public_key)
    assert message.public_key.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert len(body) == len(message.public_key) + 3


@pytest.mark.parametrize("known", [True, False])
def test_a_superlink_answers_the_question_without_activating_the_node(bed: Bed, known: bool) -> None:
    """Flower's own code: whoever changes the order of its checks there fails here."""
    bed.check()
    [(_, headers, body)] = bed.server.asked
    message = ActivateNodeRequest.FromString(body)
    state: Any = SimpleNamespace(
        get_node_id_by_public_key=lambda key: 7 if known and key == message.public_key else None
    )
    request: Any = SimpleNamespace(headers=headers, state=SimpleNamespace(protobuf_request=message))

    authenticate_node(request)  # raises if the signature or its time were wrong
    with pytest.raises(FlowerError) as caught:
        activate_node(message, state)  # a call of the state's activate_node would be an AttributeError

    assert caught.value.code == (2003 if known else 2004)


def test_the_window_of_the_clock_is_flowers_own() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert (MAX_AHEAD, MAX_BEHIND) == (SYSTEM_TIME_TOLERANCE, SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE)


def test_check_says_that_the_client_is_running(bed: Bed) -> None:
    with FileLock(bed.folder / "client.lock"):
        during = bed.check()["running"].found
    after = bed.check()["running"].found

    assert (during, after) == ("yes", "no")


def test_a_run_that_holds_the_rest_of_the_budget_is_no_failure(bed: Bed) -> None:
    with own_holder().open_session() as session:
        release(session, "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
    bed.edit("client.toml", 'name = "Ward 7"', 'name = "a"')
    bed.edit("policy.toml", "max-epsilon = 8.0", f"max-epsilon = {PLAN.spent().pld}")

    finding = bed.check()["budget"]

    assert finding.state == "warn"
    assert "run first, which is not over, holds the rest" in finding.found


def test_names_of_classes_cannot_command_the_terminal(bed: Bed) -> None:
    write_images(bed.images, range(4))
    (bed.images / "dark").rename(bed.images / "dark\x1b[2J")

    shown = CliRunner().invoke(bract.app, ["client", "check", str(bed.folder)]).stdout

    assert "\x1b" not in shown


def test_a_proxy_that_a_client_would_take_is_told(bed: Bed) -> None:
    bed.patch.setenv("NO_PROXY", "")
    bed.patch.setenv("no_proxy", "")
    bed.patch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")

    finding = bed.check()["server"]

    assert finding.state == "warn"
    assert "proxy.example:3128" in finding.found
    assert "secret" not in finding.found + finding.remedy
