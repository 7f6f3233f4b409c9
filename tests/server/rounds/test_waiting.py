"""Whom a run waits for and why, written while it waits and gone when it goes on.

Drives `server.reporting.live.federation_sections`.
"""

import html
import os
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message

from common.page.blocks import Page
from common.page.render import render
from server.deployment.client_list import Client
from server.federation import run_federation
from server.reporting.live.federation_sections import clients_section, waiting_section
from server.reporting.live.watched_folder import WatchedFolder
from server.rounds import waiting
from server.rounds.messaging import deliver
from server.rounds.waiting import WAITING_FILE, Pending, Wait, Waiting, read_wait
from server.run_context import RunContext
from tests.support.server.failing_federation import FailingGrid, clients_of, lines, round_of, survival_config

HOSTILE = "<script>alert(1)</script>\"'\u202e" + "x" * 10_000
NOW = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)


def at(seconds: int) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def shown(section: Any) -> str:
    page = render(Page("t", "", (section,), ""), version=1, now=at(0))
    assert "<script>alert" not in page
    main = page[page.index("<main") : page.index("</main>")]
    return (
        " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())
        .replace(" ,", ",")
        .replace(" .", ".")
        .replace("( ", "(")
    )


class WatchedGrid(FailingGrid):
    """A network that reads, at each look for replies, what the run says of its waiting."""

    run_folder = Path()

    def __init__(self, *given: Any, **network: Any) -> None:
        super().__init__(*given, **network)
        self.seen: list[Wait] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = read_wait(self.run_folder)
        if found is not None:
            self.seen.append(found[0])
        return super().pull_messages(message_ids)


def test_a_client_that_does_not_answer_is_named_until_its_round_ends(
    tmp_path: Path, output: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    monkeypatch.setattr(waiting, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(WatchedGrid, "run_folder", output)
    config = survival_config(output, num_rounds=3, round_deadline=3.0)
    folders = clients_of(tmp_path)
    grid = WatchedGrid(
        folders, config, lost=lambda number, message: number == 1 and round_of(message) == 2,
        there=lambda number: number != 1 or not any(asked[2] == 2 for asked in grid.asked),
    )  # fmt: skip

    run_federation(grid, config, lambda _: RunContext())

    # Others may be missing for an instant, as long as nobody has fetched their replies yet.
    (wait, *_) = [wait for wait in grid.seen if wait.num_pending == 1 and wait.pending[0].away_since]
    assert (wait.what, wait.server_round) == ("train", 2)
    assert [(one.name, one.node) for one in wait.pending] == [("ward-1", 3)]
    assert (wait.total, wait.needed) == (3, 2)
    begun, ends = map(datetime.fromisoformat, (wait.since, wait.until))
    assert (ends - begun).total_seconds() == pytest.approx(3.0, abs=0.01)
    assert lines(output)[1]["failures"] == {"ward-1": "LATE"}
    assert not (output / WAITING_FILE).exists()


class PromptGrid:
    """A network whose clients have answered before anybody looks, as in a simulation."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [str(message.metadata.dst_node_id) for message in messages]

    def pull_messages(self, keys: Iterable[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=key)) for key in keys]


def test_a_run_that_waits_for_nobody_records_nothing() -> None:
    told: list[object] = []
    messages = [SimpleNamespace(metadata=SimpleNamespace(dst_node_id=node)) for node in (2, 3)]

    arrived = deliver(PromptGrid(), messages, heard=told.append)  # type: ignore[arg-type]

    assert set(arrived) == {2, 3}
    assert told == []


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_run_that_waits_is_told_who_has_answered(one_by_one: bool) -> None:
    class SlowGrid(PromptGrid):
        """A network over which node 3 answers after node 2 was heard."""

        def pull_messages(self, keys: Iterable[str]) -> list[SimpleNamespace]:
            return super().pull_messages([key for key in keys if key == "2" or {2} in told])

    told: list[set[int]] = []
    messages = [SimpleNamespace(metadata=SimpleNamespace(dst_node_id=node)) for node in (2, 3)]

    arrived = deliver(
        SlowGrid(),
        messages,
        one_by_one=one_by_one,
        heard=lambda nodes: told.append(set(nodes)),  # type: ignore[arg-type]
    )

    assert set(arrived) == {2, 3}
    assert {2} in told


@pytest.mark.parametrize("fault", ["connected", "disk"])
def test_a_record_that_cannot_be_written_stops_no_run(tmp_path: Path, fault: str, monkeypatch: Any) -> None:
    def gone() -> Iterable[int]:
        raise ConnectionError("no list")

    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    folder = tmp_path if fault == "connected" else tmp_path / "gone"
    with Waiting(folder, gone, 1).during("train", {"a": 2}, seconds=None) as heard:
        heard({})
        assert (read_wait(folder) is not None) == (fault == "connected")
    assert read_wait(folder) is None


def test_a_wait_is_written_after_a_second_and_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    looks: list[int] = []

    def connected() -> Iterable[int]:
        looks.append(1)
        return [2]

    with Waiting(tmp_path, connected, 1).during("train", {"a": 2, "b": 3}, seconds=9.0, server_round=7) as heard:
        for seconds, written in ((0.5, 0), (0.6, 1), (0.5, 1), (1.6, 2)):
            now[0] += seconds
            heard({2})
            assert len(looks) == written
        found = read_wait(tmp_path)
        assert found is not None
        assert [one.name for one in found[0].pending] == ["b"]
        assert found[0].num_pending == 1


def test_what_a_killed_process_left_is_not_taken_for_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    (tmp_path / "config.toml").write_text("num-rounds = 9\n")
    look = Waiting(tmp_path, lambda: [2], 1).during("train", {"a": 2}, seconds=60.0, server_round=7)
    look.__enter__()(())  # never left, as where the process is killed
    watched = WatchedFolder(tmp_path)
    before = watched.mark()
    assert "Round 7 waits for 1 of 1 clients to train" in shown(watched.page().sections[0])

    long_ago = time.time() - 60
    os.utime(tmp_path / WAITING_FILE, (long_ago, long_ago))

    text = shown(watched.page().sections[0])
    assert watched.mark() != before
    assert " waits " not in text
    assert "The run does not go on" in text
    Waiting(tmp_path, tuple, 1)  # a resumed run
    assert watched.page().sections[0].name == "verdict"


def test_a_sign_of_life_alone_changes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    monkeypatch.setattr(waiting, "_SECONDS_BETWEEN_LOOKS", 0.0)
    (tmp_path / "config.toml").write_text("num-rounds = 9\n")
    watched = WatchedFolder(tmp_path)
    with Waiting(tmp_path, lambda: [2], 1).during("train", {"a": 2, "b": 3}, seconds=60.0) as heard:
        heard(())
        first, file = watched.mark(), (tmp_path / WAITING_FILE).stat().st_ino
        heard(())
        assert (tmp_path / WAITING_FILE).stat().st_ino != file
        assert watched.mark() == first
        heard({2})
        assert watched.mark() != first


PENDING = (Pending("hospital-b", 12, at(-40)), Pending("clinic-3", 13))
WAIT = Wait("train", 7, at(-25), at(95), 4, 5, 2, PENDING)


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (WAIT, "Round 7 waits for 2 of 5 clients to train: hospital-b (not connected, last seen at 2026-11-27 "
               "09:58:00 UTC ), clinic-3 (connected, still computing or sending at 2026-11-27 09:59:35 UTC ). It "
               "goes on when all have answered, or at the time limit at 2026-11-27 10:01:35 UTC if 4 have answered "
               "by then."),
        (Wait("train", 7, at(0), "", 4, 5, 2, PENDING), "when all have answered. There is no time limit."),
        (Wait("connect", 0, at(0), at(60), 2, 5, 3), "The run waits for 3 of 5 clients to connect. It goes on when all "
                                                     "are there, or at the time limit at 2026-11-27 10:01:00 UTC if 2 "
                                                     "are there by then."),
        (Wait("agree", 0, at(0), at(60), 0, 5, 1, (Pending("node 12", 12),)), "to agree to the run: hospital-b"),
        (Wait("evaluate", 0, at(0), at(60), 0, 5, 1, PENDING[1:]), "10:01:00 UTC."),
        (Wait("reconnect", 7, at(0), at(60), 4, 5, 1, PENDING[:1]), "It tries again when 4 are connected, or at the"),
        (Wait("train", 7, at(0), "", 4, 500, 9, (*PENDING, *PENDING, *PENDING)), "and 4 more. It goes on"),
    ],
)  # fmt: skip
def test_the_page_says_why_a_run_waits(wait: Wait, said: str) -> None:
    clients = [Client("hospital-b", "key", 12, "offline", at(-120), at(-900))]

    assert said in shown(waiting_section(wait, True, clients))


def test_names_of_clients_harm_no_page() -> None:
    pending = tuple(Pending(HOSTILE, node) for node in range(200))

    text = shown(waiting_section(Wait("train", 1, HOSTILE, HOSTILE, 1, 200, 200, pending), True, []))

    assert "\u202e" not in text
    assert len(text) < 100_000


def test_the_list_of_clients_says_who_is_late_and_who_is_waited_for() -> None:
    clients = [
        Client(name, "key", node, status, at(-60), at(-900))
        for name, node, status in (("a", 1, "online"), ("b", 2, "offline"), ("c", 13, "online"))
    ]
    newest = {"round": 6, "failures": {"b": "LATE"}}

    rows = {row[0].text: row for row in clients_section(clients, "", newest, WAIT).blocks[1].rows}  # type: ignore[union-attr]

    assert [rows[name][3].text for name in "abc"] == ["-", "LATE in round 6", "is waited for"]
    assert [rows[name][2].way for name in "ab"] == ["for", "ago"]


def test_a_damaged_record_says_nothing(tmp_path: Path) -> None:
    for content in ("", "[]", '{"pending": 3}', '{"pending": [], "odd": 1}'):
        (tmp_path / WAITING_FILE).write_text(content)
        assert read_wait(tmp_path) is None
