"""A client's record of its connection and tasks, and the history of its pin.

Drives `client.status.pin_history`.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from client.status.activity import ACTIVITY_FILE, ActivityRecord, DoneTask, Link, read_activity
from client.status.pin_history import PINS_FILE, note_pin, read_pins

START = datetime(2026, 11, 27, 10, tzinfo=UTC)


def test_a_record_keeps_since_when_and_the_last_tasks(tmp_path: Path) -> None:
    seconds = iter(range(1000))
    record = ActivityRecord(tmp_path, lambda: START + timedelta(seconds=next(seconds)))
    record.link(Link.CONNECTED)
    record.link(Link.CONNECTED)
    record.task("a message")
    record.task("round 3, train")

    found = read_activity(tmp_path)
    assert found is not None
    assert (found.link, found.since) == (Link.CONNECTED, "2026-11-27T10:00:01.000+00:00")
    assert (found.task, found.task_since) == ("round 3, train", "2026-11-27T10:00:02.000+00:00")
    for number in range(30):
        record.done(f"round {number}, train", 1.24, "\x1b[2J" + "x" * 999)
    again = ActivityRecord(tmp_path)

    found = read_activity(tmp_path)
    assert again is not None
    assert found is not None
    assert (found.task, found.link, len(found.done)) == ("", Link.CONNECTING, 20)
    assert found.done[-1] == DoneTask(found.done[-1].time, "round 29, train", 1.2, r"\x1b[2J" + "x" * 196)
    assert (tmp_path / ACTIVITY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_says_nothing_and_stops_no_client(tmp_path: Path) -> None:
    for content in (b"", b"[]", b'{"link": "odd", "done": []}', b'{"done": [{"a": 1}]}', b"\xff"):
        (tmp_path / ACTIVITY_FILE).write_bytes(content)
        assert read_activity(tmp_path) is None
    ActivityRecord(tmp_path)
    assert read_activity(tmp_path) is not None

    gone = ActivityRecord(tmp_path / "gone")
    gone.link(Link.CONNECTED)
    note_pin(tmp_path / "gone", "ab")


def test_a_pin_is_written_once_for_each_change(tmp_path: Path) -> None:
    for bundle in ("ab", "ab", "", "cd", "cd", "ab"):
        note_pin(tmp_path, bundle)
    with (tmp_path / PINS_FILE).open("a") as stream:
        stream.write('{"odd": 1}\n{"time"')

    assert [pin.bundle for pin in read_pins(tmp_path)] == ["ab", "", "cd", "ab"]
    note_pin(tmp_path, "ef")
    assert [pin.bundle for pin in read_pins(tmp_path)][-1] == "ef"
