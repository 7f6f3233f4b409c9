"""`bract client status`: runs, what was spent, what is left and what was refused, from the ledger alone.

Drives `client.status.view`, `common.ledger.remaining_budget`.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bract
from client.status.status import client_status
from common.ledger.audit.costs import cost_of
from common.ledger.data_holder import close_below, own_holder
from common.ledger.registrations import Release, planned_events, released_events
from common.privacy.plan import PrivacyPlan
from common.system.app_bundle import bundle_digest, installed_bundle
from tests.support.clients.own_clients import OwnClient
from tests.support.ledger.builders import PLAN, holding, release

pytestmark = pytest.mark.usefixtures("own_home")
POLICY = "max-epsilon = 8.0\ndelta = 1e-5\n"


@pytest.fixture
def client(tmp_path: Path, images: Path) -> OwnClient:
    return OwnClient(tmp_path, images, POLICY, name="a")


def show(client: OwnClient, *more: str) -> str:
    done = CliRunner().invoke(bract.app, ["client", "status", str(client.folder), *more])
    assert done.exit_code == 0, done.output
    return done.stdout


def spend() -> None:
    with own_holder().open_session() as session:
        parts = (holding(0, 6), holding(6, 8))
        release(session, "first", PLAN, parts, [(1, "train"), (2, "train"), (3, "train"), (3, "closing")])
        session.close("first", "a")
        agreed = session.registration("first", "a")
        assert agreed is not None
        release(session, "second", PLAN, (holding(20, 26), holding(26, 28)), [(1, "train")])
        session.refuse("third-run", "a", 0, "query", "epsilon would come to 9, the policy allows 8")
        session.refuse("third-run", "b", 0, "query", "another client's")
        session.note("fourth-run", "a", "took part with privacy.mechanism='none'")


def test_a_new_client_has_spent_nothing(client: OwnClient) -> None:
    status = client_status(client.folder)

    assert (status.runs, status.refusals, status.running, status.pin) == ((), (), False, "none")
    assert status.budget is not None
    assert (status.budget.spent, status.budget.left) == (0.0, 8.0)
    assert "Spent   nothing yet" in show(client)


def test_status_tells_each_run_and_what_is_left_for_the_image_that_has_spent_most(client: OwnClient) -> None:
    spend()

    status = client_status(client.folder)

    first, second = status.runs
    assert (first.audited.run, first.audited.rounds) == ("first", 3)
    assert (first.audited.closing, first.audited.closed) == (True, True)
    assert (second.audited.run, second.audited.rounds, second.audited.closed) == ("second", 1, False)
    assert first.sent == first.audited.spent == cost_of(planned_events(PLAN), delta=PLAN.delta)
    assert second.sent == cost_of(released_events(PLAN, ["train"]), delta=PLAN.delta)
    assert second.sent.pld < second.audited.planned.pld
    assert status.budget is not None
    assert status.budget.spent == PLAN.spent().pld  # the two runs are about different images
    assert status.budget.left == 8.0 - PLAN.spent().pld
    assert [said.text for said in status.refusals] == ["query in round 0: epsilon would come to 9, the policy allows 8"]


def test_what_was_reserved_but_never_left_is_told_apart(client: OwnClient) -> None:
    spend()
    with own_holder().open_session() as session:
        agreed = session.registration("second", "a")
        assert agreed is not None
        from common.privacy.policy import ANYTHING

        session.reserve(agreed, 2, "train", "0" * 64, ANYTHING)

    run = client_status(client.folder).runs[1]

    assert run.sent == cost_of(released_events(PLAN, ["train"]), delta=PLAN.delta)
    assert run.audited.spent == cost_of(released_events(PLAN, ["train", "train"]), delta=PLAN.delta)


@pytest.mark.parametrize(
    ("released", "plan", "state"),
    [
        ([1, 2, 3, "closing"], PLAN, "finished"),
        ([1, 2, 3], replace(PLAN, counts=None), "finished"),
        ([1, 2, 3], PLAN, "open"),
        ([1, 2, "closing"], PLAN, "open"),
    ],
)
def test_a_run_whose_end_the_client_never_heard_is_finished_once_its_plan_is_charged(
    client: OwnClient, released: list[int | str], plan: PrivacyPlan, state: str
) -> None:
    what: list[tuple[int, Release]] = [(number, "train") for number in released if isinstance(number, int)]
    with own_holder().open_session() as session:
        parts = (holding(0, 6), holding(6, 8))
        release(session, "first", plan, parts, [*what, *([(3, "closing")] if "closing" in released else [])])

    (run,) = client_status(client.folder).runs

    assert (run.state, run.audited.closed) == (state, False)
    text = " ".join(show(client).split())
    assert ("finished: its whole plan is charged" in text) == (state == "finished")
    assert ("open: the server may ask" in text) == (state == "open")


def test_status_can_be_read_at_80_columns(client: OwnClient) -> None:
    spend()

    text = show(client)

    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    for part in ("Client a: not running", "NONE", "Run first", "closed", "3 of 3 rounds answered, closing counts too"):
        assert part in text
    assert "1 of 3 rounds answered, closing counts not yet" in text
    assert "privacy.mechanism='none'" in text
    assert "the policy allows 8" in text
    assert "another client's" not in text


def test_status_as_json_says_the_same(client: OwnClient) -> None:
    spend()

    found = json.loads(show(client, "--json"))

    assert found["budget"]["spent"] == PLAN.spent().pld
    assert [run["run"] for run in found["runs"]] == ["first", "second"]
    assert [run["state"] for run in found["runs"]] == ["closed", "open"]
    assert found["ledger"]["verdict"] == "internally consistent"
    assert found["pin"] == "none"


def test_status_says_whose_code_is_pinned(client: OwnClient) -> None:
    for digest, pin in ((bundle_digest(installed_bundle()), "installed"), ("0" * 64, "other")):
        (client.folder / "policy.toml").write_text(f'{POLICY}bundle = "{digest}"\n')
        assert client_status(client.folder).pin == pin


def test_status_neither_waits_for_a_client_that_writes_nor_changes_the_ledger(client: OwnClient) -> None:
    spend()
    with own_holder().open_session() as session, session.ledger.transaction():  # nobody else can write now
        assert len(client_status(client.folder).runs) == 2


def test_status_changes_nothing(client: OwnClient, own_home: Path) -> None:
    spend()
    close_below(own_home)
    ledger = own_home / "holder" / "ledger.sqlite"
    before = (ledger.read_bytes(), sorted(ledger.parent.iterdir()))

    show(client)

    assert (ledger.read_bytes(), sorted(ledger.parent.iterdir())) == before


def test_a_ledger_that_was_changed_gives_no_figures(client: OwnClient, own_home: Path) -> None:
    close_below(own_home)
    ledger = own_home / "holder" / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes().replace(b'"simulated":false', b'"simulated":true '))

    status = client_status(client.folder)

    assert (status.budget, status.runs) == (None, ())
    assert "DOUBTFUL" in show(client)


def test_a_folder_without_a_client_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(bract.app, ["client", "status", str(tmp_path)])

    assert done.exit_code == 2
    assert "bract client init" in done.stderr.replace("\n", "")
