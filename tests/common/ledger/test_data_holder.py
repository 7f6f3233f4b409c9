"""A holder's ledger is the one it was: an older copy is refused, and a file that was replaced is opened anew.

Drives `common.ledger.connection_pool`.
"""

import json
import os
import shutil
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.ledger.connection_pool import ConnectionPool
from common.ledger.data_holder import Holder, close_below, own_holder, simulated_holder
from common.ledger.database import Ledger
from common.ledger.transactions import LedgerSession
from tests.support.ledger.builders import KEYS
from tests.support.network.kills import start

# Writes one entry more and dies with the log unread.
KILLED = """
import os, sys
from pathlib import Path
from common.ledger.database import Ledger
ledger = Ledger(Path(sys.argv[1]), durable=True)
with ledger.transaction():
    ledger.append("note", "the last one", {})
os._exit(9)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Holder:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return own_holder()


def note(holder: Holder, what: str) -> None:
    with holder.open_session() as session:
        session.note("run", "a", what)


def notes(holder: Holder) -> list[str]:
    with holder.open_session() as session:
        return [entry.event["note"] for entry in session.ledger.entries("kind = 'note'")]


def let_go(holder: Holder) -> Path:
    close_below(holder.ledger_file.parent)
    return holder.ledger_file


def settle(ledger: Ledger) -> None:
    """Move the log into the file: SQLite would read one that is left over into whatever file lies beside it."""
    ledger.query("PRAGMA wal_checkpoint(TRUNCATE)")


def head_file(holder: Holder) -> Path:
    assert holder.head_file is not None
    return holder.head_file


def test_own_holder_is_the_same_each_time_and_closed_to_others(holder: Holder, tmp_path: Path) -> None:
    note(holder, "one")

    assert own_holder() == holder
    assert (holder.durable, holder.simulated) == (True, False)
    home = tmp_path / "home"
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (home, home / "holder", home / "heads"))
    assert stat.S_IMODE(holder.ledger_file.stat().st_mode) == 0o600
    assert head_file(holder).parent == home / "heads"  # apart from the ledger


def test_own_holder_says_so_when_its_folder_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "file"))

    with pytest.raises(LedgerError, match="cannot be used"):
        own_holder()
    with pytest.raises(LedgerError, match="cannot be made"):
        simulated_holder(tmp_path / "file" / "ledgers", "0", seed=0, durable=False)


def test_simulated_holders_of_one_seed_repeat_and_have_no_head_apart(tmp_path: Path) -> None:
    one, again = (simulated_holder(tmp_path / "ledgers", "0", seed=3, durable=False) for _ in range(2))

    assert one == again
    assert (one.head_file, one.simulated) == (None, True)
    assert one.keys != simulated_holder(tmp_path / "ledgers", "1", seed=3, durable=False).keys


def test_head_apart_is_that_of_the_ledger_also_after_an_error(holder: Holder) -> None:
    with pytest.raises(KeyError), holder.open_session() as session:
        raise KeyError(session.note("run", "a", "one"))

    with holder.open_session() as session:
        kept = json.loads(head_file(holder).read_text())
        assert (kept["seq"], kept["hash"]) == (2, session.ledger.head().hash)
        signed = holder.head(session)
    signed.check()
    assert (signed.seq, signed.ledger) == (2, holder.keys.ledger_id)


@pytest.mark.parametrize("kept_open", [False, True])
def test_books_refuse_an_older_copy(holder: Holder, tmp_path: Path, kept_open: bool) -> None:
    note(holder, "one")
    older = shutil.copy(let_go(holder), tmp_path / "older")
    with holder.open_session() as session:
        session.note("run", "a", "two")
        settle(session.ledger)
    if not kept_open:
        let_go(holder)
    os.replace(older, holder.ledger_file)

    for _ in range(2):
        with pytest.raises(LedgerError, match="lacks entry 3"):
            note(holder, "three")

    assert json.loads(head_file(holder).read_text())["seq"] == 3  # nor is that forgotten


@pytest.mark.parametrize("what", ["deleted", "empty", "begun anew"])
def test_books_refuse_a_ledger_that_is_gone(holder: Holder, what: str) -> None:
    note(holder, "one")
    file = let_go(holder)
    file.unlink()
    if what == "empty":
        file.write_bytes(b"")
    if what == "begun anew":
        ledger = Ledger(file, durable=True)
        LedgerSession(ledger, holder.keys, simulated=False).note("run", "a", "another")
        ledger.close()

    with pytest.raises(LedgerError, match="lacks entry 2"):
        note(holder, "two")


def test_books_refuse_a_copy_with_as_many_other_entries(holder: Holder, tmp_path: Path) -> None:
    note(holder, "one")
    older = shutil.copy(let_go(holder), tmp_path / "older")
    note(holder, "two")
    let_go(holder)
    ledger = Ledger(Path(older), durable=True)
    LedgerSession(ledger, holder.keys, simulated=False).note("run", "a", "not two")
    ledger.close()
    os.replace(older, holder.ledger_file)

    with pytest.raises(LedgerError, match="lacks entry 3"):
        note(holder, "three")


def test_books_take_a_ledger_that_is_ahead_of_its_head(holder: Holder) -> None:
    note(holder, "one")
    behind = head_file(holder).read_text()
    note(holder, "two")
    head_file(holder).write_text(behind)  # a crash between the two

    assert notes(holder) == ["one", "two"]
    assert json.loads(head_file(holder).read_text())["seq"] == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"seq": 2}', '{"seq": "x", "hash": "y"}', "\x00" * 9])
def test_books_are_refused_when_the_head_apart_is_damaged(holder: Holder, content: str) -> None:
    note(holder, "one")
    head_file(holder).write_text(content)

    with pytest.raises(LedgerError, match="cannot be read"):
        note(holder, "two")

    head_file(holder).unlink()
    assert notes(holder) == ["one"]


def test_books_go_on_with_the_newest_copy(holder: Holder, tmp_path: Path) -> None:
    note(holder, "one")
    newest = shutil.copy(let_go(holder), tmp_path / "newest")
    os.replace(newest, holder.ledger_file)
    note(holder, "two")

    assert notes(holder) == ["one", "two"]


def test_books_of_many_threads_lose_nothing(holder: Holder) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(12):
                note(holder, f"{name} {number}")
        except BaseException as error:  # told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(notes(holder)) == 48
    assert [file.name for file in head_file(holder).parent.iterdir()] == [head_file(holder).name]


@pytest.fixture
def pool() -> ConnectionPool:
    return ConnectionPool()


def make(file: Path, made: list[LedgerSession]) -> LedgerSession:
    made.append(LedgerSession(Ledger(file, durable=False), KEYS, simulated=True))
    return made[-1]


def test_opened_keeps_books_open_and_gives_them_to_one_at_a_time(pool: ConnectionPool, tmp_path: Path) -> None:
    file, made = tmp_path / "a.sqlite", list[LedgerSession]()

    with pool.session(file, "me", lambda: make(file, made)) as first:  # noqa: SIM117
        with pool.session(file, "me", lambda: make(file, made)) as second:
            assert second is not first
    with pool.session(file, "me", lambda: make(file, made)) as third:
        assert third in made[:2]
    with pool.session(file, "somebody else", lambda: make(file, made)) as fourth:
        assert fourth not in made[:2]

    assert len(made) == 3
    pool.close_below(tmp_path)


@pytest.mark.parametrize("under_way", [False, True])
def test_opened_opens_anew_a_file_that_was_replaced(pool: ConnectionPool, tmp_path: Path, under_way: bool) -> None:
    file, other, made = tmp_path / "a.sqlite", tmp_path / "other", list[LedgerSession]()
    make(other, []).ledger.close()

    with pool.session(file, "me", lambda: make(file, made)) as session:
        session.note("run", "a", "in the old file")
        settle(session.ledger)
        if under_way:
            os.replace(other, file)
    if not under_way:
        os.replace(other, file)

    with pool.session(file, "me", lambda: make(file, made)) as session:
        assert session.ledger.head().seq == 1
    assert len(made) == 2
    pool.close_below(tmp_path)


def test_opened_opens_anew_a_file_that_was_deleted(pool: ConnectionPool, tmp_path: Path) -> None:
    file, made = tmp_path / "a.sqlite", list[LedgerSession]()

    with pool.session(file, "me", lambda: make(file, made)):
        file.unlink()
    with pool.session(file, "me", lambda: make(file, made)) as session:
        session.note("run", "a", "in a file of its own")

    assert len(made) == 2
    assert file.is_file()
    pool.close_below(tmp_path)


def test_opened_lets_go_after_an_error(pool: ConnectionPool, tmp_path: Path) -> None:
    file, made = tmp_path / "a.sqlite", list[LedgerSession]()

    with pytest.raises(KeyError), pool.session(file, "me", lambda: make(file, made)):
        raise KeyError

    with pool.session(file, "me", lambda: make(file, made)):
        assert len(made) == 2
    pool.close_below(tmp_path)


def test_close_below_leaves_single_files_with_everything_in_them(pool: ConnectionPool, tmp_path: Path) -> None:
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    file, outside, killed = (tmp_path / name for name in ("in/a.sqlite", "out/b.sqlite", "in/killed.sqlite"))
    for one in (file, outside):
        with pool.session(one, "me", lambda one=one: make(one, [])) as session:  # type: ignore[misc]
            session.note("run", "a", "one")
    process = start(KILLED, [str(killed)])
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert killed.with_suffix(".sqlite-wal").stat().st_size > 0

    pool.close_below(tmp_path / "in")

    assert sorted(found.name for found in (tmp_path / "in").iterdir()) == ["a.sqlite", "killed.sqlite"]
    assert outside.with_suffix(".sqlite-wal").is_file()  # that one is still open
    copy = Path(shutil.copy(file, tmp_path / "copy.sqlite"))
    for found, seq in ((copy, 2), (killed, 1)):
        ledger = Ledger(found, durable=False)
        assert ledger.head().seq == seq
        ledger.close()
    pool.close_below(tmp_path / "out")


def test_close_below_refuses_what_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"no ledger at all" * 99)
    (tmp_path / "a.sqlite-wal").write_bytes(b"")

    with pytest.raises(LedgerError, match="cannot be opened"):
        close_below(tmp_path)


def test_books_refuse_a_chain_with_a_hole_though_its_last_entry_is_there(holder: Holder) -> None:
    for what in ("one", "two", "three"):
        note(holder, what)
    connection = sqlite3.connect(let_go(holder))
    connection.execute("DROP TRIGGER entry_DELETE")
    connection.execute("DELETE FROM entry WHERE seq = 3")
    connection.commit()
    connection.close()

    with pytest.raises(LedgerError, match="chain is broken"), holder.open_session():
        pass


def test_opened_uses_a_file_once_that_was_replaced_while_it_was_being_opened(
    pool: ConnectionPool, tmp_path: Path
) -> None:
    file, other = tmp_path / "ledger.sqlite", tmp_path / "other.sqlite"
    for path in (file, other):
        Ledger(path, durable=True).close()
    made: list[LedgerSession] = []

    def make() -> LedgerSession:
        made.append(LedgerSession(Ledger(file, durable=True), KEYS, simulated=True))
        if len(made) == 1:
            settle(made[0].ledger)
            os.replace(other, file)
        return made[-1]

    for _ in range(3):
        with pool.session(file, "", make):
            pass

    assert len(made) == 2
