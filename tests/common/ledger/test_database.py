"""A ledger is only ever added to, in turn, by everybody, and is closed to others."""

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.ledger.database import Head, Ledger
from common.ledger.hash_chain import ORIGIN, check_chain
from common.ledger.registrations import charges_in
from common.ledger.transactions import LedgerSession
from common.privacy.accounting import spent_by
from tests.support.ledger.builders import KEYS, PLAN, write_honest
from tests.support.network.kills import start

# Two of these start at once: each says that it is ready, waits for a line, and then adds as fast as it can.
APPENDING = """
import sys
from pathlib import Path
from common.errors import LedgerError
from common.ledger.database import Ledger

me, file = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
ledger, accepted = Ledger(file, durable=False), 0
for name in [f"{me} {number}" for number in range(80)] + [f"both {number}" for number in range(40)]:
    try:
        with ledger.transaction():
            ledger.append("note" if ledger.head().seq else "genesis", name, {"by": me})
        accepted += 1
    except LedgerError:
        pass
print(accepted)
"""
ROUNDS = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.support.ledger.builders import ASKED, KEYS, PLAN, holding
from common.errors import PolicyError
from common.ledger.transactions import LedgerSession
from common.ledger.database import Ledger
from common.privacy.policy import ANYTHING

me, file = int(sys.argv[1]), Path(sys.argv[2])
plan = replace(PLAN, num_rounds=60, counts=replace(PLAN.counts, num_rounds=60))
print("ready", flush=True)
sys.stdin.readline()
session, accepted = LedgerSession(Ledger(file, durable=False), KEYS, simulated=True), 0
agreed = session.register("one", "a", plan, (holding(0, 6), holding(6, 8)), ANYTHING)
for number in range(50):
    try:
        session.reserve(agreed, 1 + me + 2 * number, "train", ASKED, ANYTHING)
        accepted += 1
    except PolicyError:
        pass
print(accepted)
"""
RUNS = """
import sys
from pathlib import Path
from tests.support.ledger.builders import ASKED, KEYS, PLAN, holding
from common.errors import PolicyError
from common.ledger.transactions import LedgerSession
from common.ledger.database import Ledger
from common.privacy.policy import load_policy

me, file = sys.argv[1], Path(sys.argv[2])
policy = load_policy(file.with_name("policy.toml"))
print("ready", flush=True)
sys.stdin.readline()
session, accepted = LedgerSession(Ledger(file, durable=False), KEYS, simulated=True), 0
for number in range(6):
    try:
        agreed = session.register(f"run {me} {number}", me, PLAN, (holding(0, 6), holding(6, 8)), policy)
        session.reserve(agreed, 1, "train", ASKED, policy)
        accepted += 1
    except PolicyError:
        pass
print(accepted)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite", durable=False)
    with opened.transaction():
        for number in range(3):
            opened.append("note", f"request {number}", {"number": number})
        opened.insert("fingerprint", [(b"name", 1, 1)], "name, image, seq")
        opened.insert("link", [(1, 1, 1)], "image, same, seq")
        opened.insert("part", [("set", "training", "image", b"", b"")], "dataset, name, unit, images, units")
    yield opened
    opened.close()


def race(program: str, file: Path) -> list[int]:
    """What two processes that begin together report."""
    processes = [start(program, [str(me), str(file)]) for me in (0, 1)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), ends
    return [int(output) for output, _ in ends]


@pytest.mark.parametrize(
    "sql",
    [
        *(f"DELETE FROM {table}" for table in ("entry", "fingerprint", "link", "part")),  # noqa: S608
        "UPDATE entry SET event = '{}'",
        "UPDATE fingerprint SET image = 2",
        "UPDATE link SET same = 2",
        "UPDATE part SET images = x'00'",
        "INSERT OR REPLACE INTO entry SELECT seq, prev_hash, kind, time, 'other', '', '', '{}', '{}', '' FROM entry",
        "INSERT OR REPLACE INTO entry SELECT 4, hash, kind, time, 'request 0', '', '', '{}', '{}', '' FROM entry "
        "WHERE seq = 3",
        "INSERT OR REPLACE INTO fingerprint (name, image, seq) VALUES (CAST('name' AS BLOB), 2, 2)",
        "INSERT OR REPLACE INTO part VALUES ('set', 'training', 'image', x'00', x'00')",
    ],
)
def test_ledger_refuses_to_change_or_drop_what_it_holds(ledger: Ledger, sql: str) -> None:
    before = list(ledger._connection.iterdump())

    with pytest.raises(LedgerError, match=r"only ever added to|must follow"), ledger.transaction():
        ledger._connection.execute(sql)

    assert list(ledger._connection.iterdump()) == before


@pytest.mark.parametrize(("seq", "before"), [(5, None), (2, None), (3, None), (4, ORIGIN), (4, "f" * 64)])
def test_ledger_refuses_an_entry_out_of_order(ledger: Ledger, seq: int, before: str | None) -> None:
    values = [seq, before or ledger.head().hash, "note", "", "new", "", "", "{}", "{}", "a" * 64]

    with pytest.raises(LedgerError, match="must follow the last one"), ledger.transaction():
        ledger._connection.execute(f"INSERT INTO entry VALUES ({', '.join('?' * 10)})", values)  # noqa: S608

    assert ledger.head().seq == 3


def test_ledger_takes_a_request_once_for_each_kind(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.append("reserve", "request 0", {})

    with pytest.raises(LedgerError, match="UNIQUE"), ledger.transaction():
        ledger.append("reserve", "request 0", {"other": 1})

    assert [entry.kind for entry in ledger.entries("request_id = 'request 0'")] == ["note", "reserve"]


def write_and_fail(ledger: Ledger, error: BaseException) -> None:
    with ledger.transaction():
        ledger.append("note", "lost", {})
        ledger.keep_reply("lost", "run", "a", b"reply")
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine"), LedgerError("mine")])
def test_transaction_leaves_nothing_when_it_is_broken_off(ledger: Ledger, error: BaseException) -> None:
    before = ledger.head()

    with pytest.raises(type(error), match="mine"):
        write_and_fail(ledger, error)

    assert (ledger.head(), ledger.reply("lost")) == (before, None)
    with ledger.transaction():  # and the next one is not disturbed
        assert ledger.append("note", "kept", {}).seq == before.seq + 1


def test_append_writes_nothing_when_a_number_cannot_be_written(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="JSON"), ledger.transaction():
        ledger.append("note", "second", {"value": float("nan")})

    assert ledger.head().seq == 3


def test_entries_are_read_as_they_were_appended(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.transaction():
        written = ledger.append("register", "new", {"ä": [1.1, None, True]}, content_digest="c", dataset="d")
    other = Ledger(tmp_path / "ledger.sqlite", durable=True)

    assert other.entries("seq = 4") == [written]
    assert other.head() == Head(4, written.hash)
    assert set(written.versions) == {"bract", "dp-accounting", "flwr", "numpy", "fingerprints"}
    other.close()


def test_ledger_files_are_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "ledger.sqlite", durable=True)
        with ledger.transaction():
            ledger.append("note", "one", {})
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    ledger.close()

    assert len(modes) == 3  # with its log and its index
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("content", [b"not a ledger at all" * 99, b"SQLite format 3\0" + b"\xff" * 2000])
def test_ledger_refuses_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(content)

    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(file, durable=True)

    assert file.read_bytes() == content


def test_ledger_refuses_another_programs_database(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE song (title TEXT)")
    connection.close()
    before = file.read_bytes()

    with pytest.raises(LedgerError, match="another program's"):
        Ledger(file, durable=True)

    assert file.read_bytes() == before


@pytest.mark.parametrize("where", ["folder", "missing/ledger.sqlite"])
def test_ledger_refuses_a_path_that_cannot_be_a_file(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / where, durable=True)


def test_ledger_says_so_when_an_entry_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    write_honest(file)
    ledger = Ledger(file, durable=False)
    ledger._connection.execute("DROP TRIGGER entry_UPDATE")
    ledger._connection.execute("DROP INDEX entry_of_run")
    ledger._connection.execute("UPDATE entry SET event = 'no JSON' WHERE seq = 2")

    with pytest.raises(LedgerError, match="damaged"):
        ledger.entries()
    ledger.close()


def test_forget_replies_keeps_the_newest_of_one_client(ledger: Ledger) -> None:
    for number in range(4):
        with ledger.transaction():
            ledger.append("commit", f"mine {number}", {})
            ledger.keep_reply(f"mine {number}", "run", "a", b"mine")
            ledger.append("commit", f"theirs {number}", {})
            ledger.keep_reply(f"theirs {number}", "run", "b", b"theirs")

    with ledger.transaction():
        ledger.forget_replies("run", "a", keep=2)

    assert [ledger.reply(f"mine {number}") for number in range(4)] == [None, None, b"mine", b"mine"]
    assert [ledger.reply(f"theirs {number}") for number in range(4)] == [b"theirs"] * 4


def test_opening_a_ledger_keeps_the_locks_of_one_that_is_open(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    first = Ledger(file, durable=False)
    with first.transaction():
        first.append("genesis", "one", {})

    with first.transaction():
        first.append("note", "two", {})
        Ledger(file, durable=False).close()
        program = f"import sqlite3; sqlite3.connect({str(file)!r}).execute('PRAGMA journal_mode = DELETE')"
        _, errors = start(program, []).communicate(timeout=60)

    assert "locked" in errors  # the first one still holds the file, for other processes too
    assert [entry.request_id for entry in first.entries()] == ["one", "two"]
    first.close()


def test_ledger_takes_exactly_one_of_each_when_two_processes_append(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"

    accepted = race(APPENDING, file)

    ledger = Ledger(file, durable=False)
    assert sum(accepted) == 2 * 80 + 40
    assert check_chain(ledger.entries()) == 2 * 80 + 40
    by = {entry.event["by"] for entry in ledger.entries()}
    assert by == {"0", "1"}
    ledger.close()


def test_ledger_waits_when_another_process_makes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, connect, refused = tmp_path / "ledger.sqlite", sqlite3.connect, []

    class Blocked(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if "journal_mode" not in sql or refused:
                return super().execute(sql, *values)
            holder = connect(file, isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
            try:
                super().execute("PRAGMA busy_timeout = 0")
                return super().execute(sql)
            except sqlite3.OperationalError:
                refused.append(sql)
                raise
            finally:
                holder.close()

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Blocked, **options))

    ledger = Ledger(file, durable=False)

    assert refused
    assert ledger.query("PRAGMA journal_mode") == [("wal",)]
    ledger.close()


def test_rounds_of_two_processes_never_exceed_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"

    accepted = race(ROUNDS, file)

    ledger = Ledger(file, durable=False)
    reserved = ledger.entries("kind = 'reserve'")
    assert sum(accepted) == len(reserved) == 60
    assert len(ledger.entries("kind = 'register'")) == 1
    assert check_chain(ledger.entries()) == 62
    ledger.close()


def test_runs_of_two_processes_never_exceed_the_budget(tmp_path: Path) -> None:
    five = spent_by([PLAN.event()] * 5, delta=1e-5).pld
    six = spent_by([PLAN.event()] * 6, delta=1e-5).pld
    (tmp_path / "policy.toml").write_text(f"max-epsilon = {json.dumps((five + six) / 2)}\ndelta = 1e-5\n")
    file = tmp_path / "ledger.sqlite"

    accepted = race(RUNS, file)

    session = LedgerSession(Ledger(file, durable=False), KEYS, simulated=True)
    assert sum(accepted) == len(charges_in(session.ledger)) == 5
    session.ledger.close()
