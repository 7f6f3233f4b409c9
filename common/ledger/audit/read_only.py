"""Open a ledger to look at it: nothing is changed, no file is made beside it, no keys are needed."""

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
_SCHEMA_BYTES = 1 << 20  # names of tables stand near the start of a file
_OBJECTS = "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


class DamagedLedgerError(LedgerError):
    """What was a ledger once cannot be read as one."""


class ReadOnlyLedger(Ledger):
    """A ledger open for reading; what others add meanwhile is not seen.

    Args:
        path: The file as the user named it.
        place: Where to open it, with SQLite's options, as a URI.

    Raises:
        DamagedLedgerError: It was a ledger once.
        LedgerError: It is no ledger.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.path = path
        try:
            self._connection = sqlite3.connect(place, uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {path} cannot be opened ({error})") from None
        try:
            self._connection.execute("BEGIN")
            tables = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        except sqlite3.Error as error:
            self.close()
            if _was_a_ledger(path):
                raise DamagedLedgerError(f"the file is damaged beyond reading: {error}") from None
            raise LedgerError(f"{path} is no ledger ({error})") from None
        if not {"entry", "part"} <= {name for (name,) in tables}:
            self.close()
            raise LedgerError(f"{path} is no ledger: it lacks a ledger's tables")


def _was_a_ledger(path: Path) -> bool:
    with path.open("rb") as stream:
        return b"CREATE TABLE entry (" in stream.read(_SCHEMA_BYTES)


@contextmanager
def open_read_only(path: Path) -> Iterator[Ledger]:
    """Open a ledger for reading.

    Guarantee: neither the file nor its log changes, and nothing is made beside it; of a ledger that
    is in use only the index that its users share (`-shm`) is written to. Where SQLite would first
    have to put things in order, after a kill or a power failure, a copy is read.

    Args:
        path: The file.

    Raises:
        DamagedLedgerError: It was a ledger once.
        LedgerError: There is no such file, it is no ledger, it cannot be read, or it was written to
            while what was read is no snapshot.
    """
    with ExitStack() as stack:
        try:
            with path.open("rb") as stream:
                header = stream.read(_HEADER)
            before = path.stat()
            place = _place_of(path.absolute(), header, stack)
        except OSError as error:
            raise LedgerError(f"the ledger {path} cannot be read ({error.strerror})") from None
        if not header.startswith(_MAGIC):
            raise LedgerError(f"{path} is no ledger: it is no SQLite file")
        ledger = ReadOnlyLedger(path, place)
        stack.callback(ledger.close)
        yield ledger
        after = path.stat()
        is_snapshot = place.endswith("mode=ro")
        if not is_snapshot and (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise LedgerError(f"the ledger {path} was written to while it was read: look at it again")


def _place_of(path: Path, header: bytes, stack: ExitStack) -> str:
    """The URI under which SQLite reads a file without leaving a trace."""
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
def _of_a_new_ledger() -> dict[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="bract-audit-") as folder:
        ledger = Ledger(Path(folder) / "new.sqlite", durable=False)
        found = dict(ledger.query(_OBJECTS))
        ledger.close()
        return found


def strange_objects(ledger: Ledger) -> list[str]:
    """Tables, indexes and triggers that are missing, changed, or no part of a ledger.

    Raises:
        LedgerError: The file is damaged.
    """
    found, known = dict(ledger.query(_OBJECTS)), _of_a_new_ledger()
    changed = [name for name in known if name in found and found[name] != known[name]]
    return [
        *(f"the {name} is missing" for name in known if name not in found),
        *(f"the {name} is not as a ledger has it" for name in changed),
        *(f"the {name} is no part of a ledger" for name in found if name not in known),
    ]
