"""A ledger's file that something else writes to is refused at the next use, whoever has it open.

Drives `common.ledger.whole_file` and the watch of `common.ledger.database`.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.ledger.data_holder import Holder, close_below, own_holder
from common.ledger.database import Ledger
from common.ledger.registrations import Registration
from common.ledger.transactions import LedgerSession
from common.ledger.whole_file import check_whole
from common.privacy.policy import ANYTHING
from tests.support.ledger.builders import ASKED, PLAN, holding, release, tamper
from tests.support.network.kills import kill, start

IMAGES = (holding(0, 6), holding(6, 8))
# Agrees to a run, moves its log into the file, writes a note into the log, and waits to be killed.
HOLDER = """
import shutil, sys, time
from pathlib import Path
from common.ledger.data_holder import own_holder
from common.privacy.policy import ANYTHING
from tests.support.ledger.builders import PLAN, holding

holder = own_holder()
with holder.open_session() as session:
    session.ledger.query("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(holder.ledger_file, sys.argv[1])
    session.register("first", "a", PLAN, (holding(0, 6), holding(6, 8)), ANYTHING)
    session.ledger.query("PRAGMA wal_checkpoint(TRUNCATE)")
    session.note("first", "a", "in the log")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(own_home: Path) -> Holder:
    return own_holder()


def settle(session: LedgerSession) -> None:
    """Move the log into the file."""
    session.ledger.query("PRAGMA wal_checkpoint(TRUNCATE)")


def overwrite(file: Path, source: Path) -> None:
    """Put other bytes into a file without replacing it, as `cp` does."""
    before = file.stat().st_ino
    subprocess.run(["cp", str(source), str(file)], check=True)
    assert file.stat().st_ino == before


def older_copy(holder: Holder, folder: Path) -> Path:
    with holder.open_session() as session:
        settle(session)
        return Path(shutil.copy(holder.ledger_file, folder / "older"))


def agree(session: LedgerSession, run: str = "first") -> Registration:
    return session.register(run, "a", PLAN, IMAGES, ANYTHING)


def answer(holder: Holder, *, meanwhile: Callable[[], None]) -> bytes:
    """Reserve a round, and commit its reply after something else has happened."""
    with holder.open_session() as session:
        agreed = agree(session)
        assert session.reserve(agreed, 1, "train", ASKED, ANYTHING) is None
        settle(session)
        meanwhile()
        return session.commit(agreed, 1, "train", b"reply", keep=2)


def refused(holder: Holder) -> None:
    """Two tries, so that the first one cannot heal the file."""
    for _ in range(2):
        with pytest.raises(LedgerError), holder.open_session() as session:
            release(session, "later", PLAN, IMAGES, [(1, "train")])


def as_older(older: Path) -> Path:
    return older


def as_nothing(older: Path) -> Path:
    older.write_bytes(b"")
    return older


def as_noise(older: Path) -> Path:
    older.write_bytes(os.urandom(older.stat().st_size))
    return older


def as_flipped(older: Path) -> Path:
    """The same ledger, with other bytes in its middle."""
    content = bytearray(older.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    older.write_bytes(content)
    return older


def as_fork(older: Path) -> Path:
    """A copy that went on by itself and is ahead of the ledger."""
    ledger = Ledger(older, durable=True)
    for number in range(9):
        with ledger.transaction():
            ledger.append("note", f"elsewhere {number}", {"run": "other", "client": "a", "note": "elsewhere"})
    ledger.close()
    return older


@pytest.mark.parametrize("other", [as_older, as_fork, as_nothing, as_noise, as_flipped])
def test_a_file_overwritten_between_two_messages_is_refused(
    holder: Holder, tmp_path: Path, other: Callable[[Path], Path]
) -> None:
    copy = older_copy(holder, tmp_path)
    with holder.open_session() as session:
        release(session, "first", PLAN, IMAGES, [(1, "train"), (2, "train")])
        settle(session)

    overwrite(holder.ledger_file, other(copy))

    refused(holder)


@pytest.mark.parametrize("other", [as_older, as_fork, as_nothing, as_noise, as_flipped])
def test_a_file_overwritten_while_a_reply_is_computed_keeps_the_reply_back(
    holder: Holder, tmp_path: Path, other: Callable[[Path], Path]
) -> None:
    with holder.open_session() as session:
        agree(session)
        settle(session)
    copy = older_copy(holder, tmp_path)

    def overwrite_it() -> None:
        overwrite(holder.ledger_file, other(copy))

    with pytest.raises(LedgerError):
        answer(holder, meanwhile=overwrite_it)

    refused(holder)


def test_a_file_replaced_while_a_reply_is_computed_keeps_the_reply_back(holder: Holder, tmp_path: Path) -> None:
    copy = older_copy(holder, tmp_path)

    with pytest.raises(LedgerError, match="replaced while it was in use"):
        answer(holder, meanwhile=lambda: os.replace(copy, holder.ledger_file))

    refused(holder)


def test_a_file_overwritten_under_a_process_that_is_killed_is_refused_though_its_chain_is_whole(
    holder: Holder, tmp_path: Path
) -> None:
    process = start(HOLDER, [str(tmp_path / "older")])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # All entries are in the log that the killed process leaves. The names of the images are in the file alone.
    overwrite(holder.ledger_file, tmp_path / "older")
    kill(process)

    for _ in range(2):
        with pytest.raises(LedgerError, match="names of images that were charged are missing"), holder.open_session():
            pass


def test_a_file_written_with_its_own_bytes_is_read_again_and_goes_on(holder: Holder, tmp_path: Path) -> None:
    with holder.open_session() as session:
        release(session, "first", PLAN, IMAGES, [(1, "train")])
    newest = older_copy(holder, tmp_path)

    overwrite(holder.ledger_file, newest)

    with holder.open_session() as session:
        release(session, "first", PLAN, IMAGES, [(2, "train")])


def test_a_log_that_another_process_moves_into_the_file_is_no_fault(holder: Holder) -> None:
    def another() -> None:
        with holder.open_session() as other:
            other.note("second", "a", "by the other")
            settle(other)

    assert answer(holder, meanwhile=another) == b"reply"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DELETE FROM fingerprint WHERE row = 1", "names of images"),
        ("DELETE FROM link", None),
        ("UPDATE part SET units = images WHERE name = 'training'", "images of a run"),
        ("DELETE FROM part WHERE name = 'evaluation'", "lacks the images"),
    ],
)
def test_rows_that_an_entry_vouches_for_are_missed(holder: Holder, change: str, why: str | None) -> None:
    with holder.open_session() as session:
        release(session, "first", PLAN, IMAGES, [(1, "train")])
        if why is None:
            check_whole(session.ledger)
    close_below(holder.ledger_file.parent)

    tamper(holder.ledger_file, lambda connection: connection.execute(change))

    if why is None:
        with holder.open_session() as session:
            check_whole(session.ledger)
        return
    with pytest.raises(LedgerError, match=why), holder.open_session():
        pass
