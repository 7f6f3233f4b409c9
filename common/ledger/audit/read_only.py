"""A ledger opened for reading only, without keys."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

from common.errors import LedgerError
from common.ledger.database import Ledger

_HEADER = 20
_MAGIC = b"SQLite format 3\0"
_WAL_FORMAT = 2
# SQLite keeps the names of tables near the start of a file.
_SCHEMA_BYTES = 1 << 20
_OBJECTS = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


class DamagedLedgerError(LedgerError):
    """A file that was a ledger and is damaged beyond reading."""


class ReadOnlyLedger(Ledger):
    """A snapshot of a ledger, open for reading.

    Entries that other processes add meanwhile are not seen. `path` is the file as the user named it, `uri` the file to
    open with SQLite's options.

    Raises:
        DamagedLedgerError: The file was a ledger and is damaged.
        LedgerError: The file is not a ledger.
    """

    def __init__(self, path: Path, uri: str) -> None:
        self.path = path
        try:
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {path} cannot be opened ({error})") from None
        try:
            # One transaction for all reads, so that they see one state of the file.
            self._connection.execute("BEGIN")
            tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        except sqlite3.Error as error:
            self.close()
            if _was_a_ledger(path):
                raise DamagedLedgerError(f"the file is damaged beyond reading: {error}") from None
            raise LedgerError(f"{path} is not a ledger ({error})") from None
        if not {"entry", "part"} <= {name for (name,) in tables}:
            self.close()
            raise LedgerError(f"{path} is not a ledger: it lacks a ledger's tables")


def _was_a_ledger(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"CREATE TABLE entry (" in stream.read(_SCHEMA_BYTES)


@contextmanager
def open_read_only(path: Path) -> Iterator[Ledger]:
    """Open a ledger for reading.

    Guarantee: neither the file nor its log changes, and no file is made beside it. For a ledger in use, SQLite writes
    only to the index that all users share (`-shm`). If a process was killed or the power failed, SQLite would first
    have to repair the file. Then a copy is read.

    Raises:
        DamagedLedgerError: The file was a ledger and is damaged.
        LedgerError: The file is missing, is not a ledger, cannot be read, or was written to while it was read without a
            snapshot.
    """
    with ExitStack() as stack:
        try:
            with path.open("rb") as stream:
                header = stream.read(_HEADER)
            before = path.stat()
            uri = _uri_of(path.absolute(), header, stack)
        except OSError as error:
            raise LedgerError(f"the ledger {path} cannot be read ({error.strerror})") from None
        if not header.startswith(_MAGIC):
            raise LedgerError(f"{path} is not a ledger: it is not an SQLite file")
        ledger = ReadOnlyLedger(path, uri)
        stack.callback(ledger.close)
        yield ledger
        after = path.stat()
        # With immutable=1 SQLite takes no locks, so a write in between could mix two states of the file.
        is_snapshot = uri.endswith("mode=ro")
        if not is_snapshot and (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise LedgerError(f"the ledger {path} was written to while it was read: look at it again")


def _uri_of(path: Path, header: bytes, stack: ExitStack) -> str:
    """Return the URI with which SQLite reads a file without changing it."""
    log, index, journal = (path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal"))
    unfinished = journal.is_file() and journal.stat().st_size > 0
    if unfinished or (log.is_file() and not index.is_file()):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bract-audit-")))
        for file in (path, log, journal):
            if file.is_file():
                shutil.copy(file, folder / file.name)
        return f"{(folder / path.name).as_uri()}?mode=rw"
    in_order = header[-1:] == bytes([_WAL_FORMAT]) and not log.is_file()
    return f"{path.as_uri()}?mode=ro" + ("&immutable=1" if in_order else "")


@lru_cache(maxsize=1)
def _expected_objects() -> dict[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="bract-audit-") as folder:
        ledger = Ledger(Path(folder) / "new.sqlite", durable=False)
        objects = dict(ledger.query(_OBJECTS))
        ledger.close()
        return objects


def strange_objects(ledger: Ledger) -> list[str]:
    """Return a line for each missing, changed or unknown database object.

    Database objects are tables, indexes and triggers.

    Raises:
        LedgerError: The file is damaged.
    """
    objects, expected = dict(ledger.query(_OBJECTS)), _expected_objects()
    changed = [name for name in expected if name in objects and objects[name] != expected[name]]
    return [
        *(f"the {name} is missing" for name in expected if name not in objects),
        *(f"the {name} differs from that of a ledger" for name in changed),
        *(f"the {name} is not part of a ledger" for name in objects if name not in expected),
    ]
