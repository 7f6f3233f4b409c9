"""`bract client watch`: a page that is true of each state of a client, from reading alone.

Drives `client.status.page`, `client.status.run_rows`, `client.status.leaving_fields`, `client.checks.budget`.
"""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bract
from client.checks.budget import check_budget, last_heads, ledger_trouble
from client.client_config import load_site
from client.runtime.client_lock import hold_lock
from client.status.activity import ActivityRecord, Link
from client.status.leaving_fields import leaving_under
from client.status.pin_history import note_pin
from client.status.status import client_status
from client.status.watched_client import WatchedClient
from common.errors import PrivacyError
from common.ledger.data_holder import close_below, own_holder
from common.ledger.registrations import planned_events
from common.messages.fields import LEDGER_FIELDS, Releases
from common.page.render import render
from common.privacy.accounting import spent_by
from common.privacy.batched_gradients import GAP
from common.privacy.events import events_of_group, own_shares
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.policy import ANYTHING, load_policy
from common.system.console import format_epsilon
from tests.support.clients.own_clients import OwnClient
from tests.support.ledger.builders import PLAN, WHOLE, holding, release

pytestmark = pytest.mark.usefixtures("own_home")
COST = PLAN.spent().pld  # 1.70
POLICY = "max-epsilon = 2.0\ndelta = 1e-5\n"
HOSTILE = "<script>document.title='taken'</script>\"'`\u202e" + "x" * 10_000


@pytest.fixture(name="client")
def own_client(tmp_path: Path, images: Path) -> OwnClient:
    return OwnClient(tmp_path, images, POLICY, name="a")


def shown(client: OwnClient) -> str:
    page = render(WatchedClient(client.folder).page(), version=1, now="2026-11-27T10:00:00+00:00")
    assert len(page) < 3_000_000
    assert "<script>document" not in page
    main = page[page.index("<main") : page.index("</main>")]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())


def part(text: str, first: str, then: str) -> str:
    return text[text.index(first) : text.index(then, text.index(first))]


def spend(*, unsent: bool = False) -> None:
    with own_holder().open_session() as session:
        release(session, "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train"), (2, "train")])
        groups = replace(PLAN, privacy_unit="group")
        release(session, "second", groups, (holding(20, 26, 2), holding(26, 28)), [(1, "train")])
        if unsent:
            agreed = session.registration("second", "a")
            assert agreed is not None
            session.reserve(agreed, 2, "train", "0" * 64, ANYTHING)


def in_a_round(client: OwnClient) -> None:
    spend(unsent=True)
    record = ActivityRecord(client.folder)
    record.link(Link.CONNECTED)
    record.task("round 2, train")


def away(client: OwnClient) -> None:
    record = ActivityRecord(client.folder)
    record.link(Link.NO_ANSWER)


def stopped(client: OwnClient) -> None:
    in_a_round(client)
    record = ActivityRecord(client.folder)
    record.link(Link.ENDED)


@pytest.mark.parametrize(
    ("prepare", "runs", "said", "unsaid"),
    [
        (lambda _: None, False, ["has not been started yet", "Nothing has been spent yet", "in no run with"], ["conn"]),
        (lambda _: None, True, ["The client runs. Its version writes nothing of its connection"], ["is connected"]),
        (in_a_round, True, ["is connected to", "reply to: round 2, train", "round 2 is reserved and not committed, so "
                            "it is being computed"], ["Nobody answers", "was killed"]),
        (in_a_round, False, ["is not running, and it did not end in order", "nothing of it has left, and nothing is "
                             "given back"], ["It computes", "is connected to"]),
        (away, True, ["Nobody answers at"], ["is connected to", "waits until the server asks"]),
        (stopped, False, ["The client is stopped, since", "nothing of it has left"], ["is connected to", "killed"]),
    ],
)  # fmt: skip
def test_the_page_is_true_of_each_state(
    client: OwnClient, prepare: Callable[[OwnClient], None], runs: bool, said: list[str], unsaid: list[str]
) -> None:
    prepare(client)
    if runs:
        with hold_lock(load_site(client.folder)):
            text = shown(client)
    else:
        text = shown(client)

    assert [words for words in said if words not in text] == []
    now = part(text, "Now", "Budget")
    assert [words for words in unsaid if words in now] == []
    assert "Internally consistent: " in text
    assert "verified" not in text.lower()


def test_a_client_that_is_killed_changes_the_page_though_it_writes_nothing_more(client: OwnClient) -> None:
    in_a_round(client)
    watched = WatchedClient(client.folder)
    with hold_lock(load_site(client.folder)):
        running = watched.mark()

    assert watched.mark() != running


def test_the_budget_is_that_of_each_kind_of_unit(client: OwnClient) -> None:
    spend()

    status = client_status(client.folder)

    assert status.budget is not None
    images, groups = status.budget.by_unit
    # 6 images train, and 2 are only counted. Of 3 groups each is charged once, whatever its number of images.
    assert (images.unit, images.units, images.near, images.used_up) == ("image", 8, 6, 0)
    assert (groups.unit, groups.units, groups.near, groups.used_up) == ("group", 5, 3, 0)
    assert images.spent == groups.spent == COST
    text = part(shown(client), "Budget by the unit", "Runs")
    assert "single images 1.699 0.302 8 6 0 groups of images, or the whole client 1.699 0.302 5 3 0" in text


def test_a_group_pays_for_the_images_that_were_charged_one_by_one(client: OwnClient) -> None:
    with own_holder().open_session() as session:
        pair = (holding(0, 2), holding(6, 8))
        release(session, "first", PLAN, pair, [(1, "train")])
        release(session, "second", replace(PLAN, privacy_unit="group"), (holding(0, 2, 2), pair[1]), [(1, "train")])

    budget = client_status(client.folder).budget

    assert budget is not None
    images, groups = budget.by_unit
    twice, once = planned_events(PLAN)["training"], planned_events(PLAN)["training"]
    assert groups.spent == spent_by([*once, *events_of_group(twice, 2)], delta=1e-5).pld
    assert (groups.units, groups.used_up, images.units) == (3, 1, 4)
    shown = CliRunner().invoke(bract.app, ["client", "status", str(client.folder)]).output
    said = " ".join(shown.split())
    assert "Spent epsilon 4.217, used up: the image that has spent most, of 4, over all clients" in said
    assert "Groups epsilon 4.217, used up: the group of images, or the whole client, that has spent most, of 3" in said


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_client_and_a_group_have_spent_what_their_own_plan_costs(client: OwnClient, whole: bool) -> None:
    """One image of either may move a sum twice as far, and no run has protected it."""
    if whole:
        plan, parts = WHOLE, (holding(0, 6).as_one_unit(), holding(6, 8).as_one_unit())
    else:
        plan, parts = replace(PLAN, privacy_unit="group"), (holding(0, 6, 3), holding(6, 8))
    with own_holder().open_session() as session:
        release(session, "first", plan, parts, [(1, "train")])

    status = client_status(client.folder)

    assert status.budget is not None
    events = own_shares(planned_events(plan)["training"])
    twice = [doubled for event in events for doubled in events_of_group([event], 2)]
    cost, start = (spent_by(counted, delta=1e-5).pld for counted in (events, twice))
    assert status.budget.by_unit[0].spent == cost
    assert status.as_json()["budget"]["spent"] == start
    said = " ".join(CliRunner().invoke(bract.app, ["client", "status", str(client.folder)]).output.split())
    units = 1 if whole else 4
    assert f"Spent epsilon {format_epsilon(start)}, used up: where a plan by single images would start, of" in said
    assert f"Groups epsilon {format_epsilon(cost)}, " in said
    assert f": the group of images, or the whole client, that has spent most, of {units}" in said
    assert f"A plan by single images would start from epsilon {format_epsilon(start)}" in shown(client)
    finding = check_budget("a", status.policy, status.report)
    assert finding.found.startswith(f"where a plan by single images would start: epsilon {format_epsilon(start)} of 2")
    assert f"; the group of images, or the whole client, that has spent most: {format_epsilon(cost)}" in finding.found
    policy = status.policy.model_copy(update={"max_epsilon": 1.2 * cost})
    # Another client of this user, whose run does not go on.
    assert check_budget("b", policy, status.report).remedy.startswith("a further run with such a plan will be refused")
    (client.folder / "policy.toml").write_text(f"{POLICY}mechanisms = ['client-dp']\n")
    assert client_status(client.folder).as_json()["budget"]["spent"] == cost


def test_a_whole_client_without_images_has_spent_too(client: OwnClient) -> None:
    with own_holder().open_session() as session:
        release(session, "first", WHOLE, (holding(0, 0).as_one_unit(),) * 2, [(1, "train")])

    status = client_status(client.folder)

    assert status.budget is not None
    assert status.budget.spent > 0 == status.budget.images
    assert "nothing" not in check_budget("a", status.policy, status.report).found
    output = CliRunner().invoke(bract.app, ["client", "status", str(client.folder)]).output
    assert f"Spent   epsilon {format_epsilon(status.budget.spent)}" in output


def test_a_budget_that_is_used_up_is_said_first(client: OwnClient) -> None:
    spend()
    (client.folder / "policy.toml").write_text(f"max-epsilon = {COST}\ndelta = 1e-5\n")

    assert "The budget of single images is used up" in part(shown(client), "Now", "Budget by")


@pytest.mark.parametrize("figure", ["spent", "near the cap", "reserved"])
def test_a_damaged_ledger_gives_no_figure(client: OwnClient, own_home: Path, figure: str) -> None:
    spend()
    close_below(own_home)
    ledger = own_home / "holder" / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes().replace(b'"simulated":false', b'"simulated":true '))

    text = shown(client)

    assert "The ledger is doubtful" in part(text, "Now", "Budget")
    assert figure not in part(text, "Budget", "Refusals")
    assert "Internally consistent" not in text
    assert "DOUBTFUL" in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda client, home: (home / "holder" / "ledger.sqlite").write_bytes(b"no"), "is not a ledger"),
        (lambda client, home: (home / "holder" / "ledger.sqlite").unlink(), "there is no ledger"),
        (lambda client, home: (client.folder / "policy.toml").write_text("max-epsilon = "), "is not a TOML file"),
        (lambda client, home: (client.folder / "client.toml").unlink(), "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_and_hides_older_figures(
    client: OwnClient, own_home: Path, spoil: Callable[[OwnClient, Path], object], said: str
) -> None:
    spend()
    close_below(own_home)
    watched = WatchedClient(client.folder)
    before = watched.mark()
    spoil(client, own_home)

    assert watched.mark() != before
    page = watched.page()
    assert page.title == "Client that cannot be read"
    assert said in render(page)


def test_an_older_ledger_is_told_and_a_newer_entry_is_not_taken_for_one(client: OwnClient, own_home: Path) -> None:
    spend()
    close_below(own_home)
    ledger = own_home / "holder" / "ledger.sqlite"
    old = ledger.read_bytes()
    heads = last_heads()
    with own_holder().open_session() as session:
        session.note("third", "a", "later")
    close_below(own_home)

    # A client that wrote between the two looks.
    assert ledger_trouble(client_status(client.folder).report, heads) is None
    ledger.write_bytes(old)
    assert "is an older copy" in part(shown(client), "The ledger is doubtful", "Budget")


def test_looking_neither_waits_for_a_client_that_writes_nor_changes_a_file(client: OwnClient, own_home: Path) -> None:
    in_a_round(client)
    watched = WatchedClient(client.folder)
    with own_holder().open_session() as session, session.ledger.transaction():  # nobody else can write now
        assert "reserved and not committed" in shown(client)
    close_below(own_home)
    folders = (own_home / "holder", client.folder)
    before = [(file, file.stat().st_mtime_ns, file.stat().st_size) for folder in folders for file in folder.iterdir()]
    mark = watched.mark()

    watched.page()

    assert before == [
        (file, file.stat().st_mtime_ns, file.stat().st_size) for folder in folders for file in folder.iterdir()
    ]
    assert watched.mark() == mark


def test_names_of_others_harm_nothing(client: OwnClient) -> None:
    with own_holder().open_session() as session:
        session.refuse(HOSTILE, "a", 1, HOSTILE, HOSTILE)
        session.refuse("r", "a", 0, "query by other code", HOSTILE)
        session.note(HOSTILE, "a", HOSTILE)
    record = ActivityRecord(client.folder)
    record.done(HOSTILE, 1.0, HOSTILE)
    record.task(HOSTILE)
    note_pin(client.folder, HOSTILE)

    text = shown(client)

    assert "\u202e" not in text
    assert "BUNDLE: the server's code is not the pinned one" in text
    assert "to agree to a run" in text


def test_every_field_that_may_leave_is_on_the_page(client: OwnClient) -> None:
    """The rows follow the list that guards each reply, so that no field is left out in words either."""
    policy = load_policy(client.folder / "policy.toml").model_copy(
        update={
            "mechanisms": tuple(MECHANISMS),
            "metrics": ("exact", "private", "none"),
            "closing": ("matrix", "full"),
            "subgroup_columns": ("sex",),
            "aggregations": ("plain", "secure"),
        }
    )
    rows = {(row.mechanism, row.reply): row.fields for row in leaving_under(policy)}

    assert "noise added at its own client" in rows["dp-sgd", "each round"]
    assert "exact counts" in rows["dp-sgd", "each round"]  # this policy allows them
    assert "no noise" in rows["none", "each round"]
    assert "histograms of scores, with noise" in rows["dp-sgd", "the end of a run"]
    assert "by subgroup, with noise" in rows["dp-sgd", "the end of a run"]
    assert "exact counts of right and wrong answers by subgroup" in rows["none", "the end of a run"]
    assert "under masks" in rows["dp-sgd", "each round"]
    assert "mask secrets" in rows["none", "the opening of a secure sum"]
    assert "sums over the features" in rows["dp-statistics", "each round"]
    assert "trained tensors" not in rows["dp-statistics", "each round"]
    narrow = {
        (row.mechanism, row.reply): row.fields for row in leaving_under(load_policy(client.folder / "policy.toml"))
    }
    assert set(narrow) == {("dp-sgd", reply) for _, reply in rows if "secure" not in reply}
    assert "exact" not in " ".join(narrow.values())
    assert not any(word in " ".join(narrow.values()) for word in ("histograms", "subgroup", "masks", "features"))
    only = {"aggregations": ("secure",), "mechanisms": ("dp-sgd", "dp-statistics")}
    masked = [
        row.fields for row in leaving_under(policy.model_copy(update=only)) if row.reply != "agreement to a run, once"
    ]
    assert masked
    assert any("sums over the features of the training images, and counts, under masks" in fields for fields in masked)
    assert not any("trained tensors" in fields or "answers" in fields for fields in masked)
    from client.status import leaving_fields

    for mechanism in MECHANISMS.values():
        for kind in ("query", "train", "evaluate", "query.close"):
            for metrics in mechanism.metrics:
                try:
                    found = Releases(mechanism, metrics, histograms=True, subgroups=2).fields(kind)
                except PrivacyError:
                    continue
                keys = {key for record, keys in found.items() for key in (keys or (record,))} - set(LEDGER_FIELDS)
                assert keys <= set(leaving_fields._WORDS), "give a new field its words"


def test_the_pin_has_a_history(client: OwnClient) -> None:
    note_pin(client.folder, "ab" * 32)
    note_pin(client.folder, "")
    (client.folder / "policy.toml").write_text(f'{POLICY}bundle = "{"ab" * 32}"\n')

    text = part(shown(client), "Pinned code", "What leaves")

    assert "is NOT the Bract that is installed here" in text
    assert "has not been started with this line" in text
    note_pin(client.folder, "ab" * 32)
    assert "first started with it" in shown(client)


def test_a_folder_without_a_client_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(bract.app, ["client", "watch", str(tmp_path)])

    assert done.exit_code == 2
    assert "bract client init" in done.stderr.replace("\n", "")


@pytest.mark.parametrize("allowed", ['["auto"]', '["auto", "opacus"]'])
def test_page_says_what_gradients_in_batches_leave_open(client: OwnClient, allowed: str) -> None:
    (client.folder / "policy.toml").write_text(f"{POLICY}gradients = {allowed}\n")

    text = shown(client)

    assert (GAP in text) == ("opacus" in allowed)
