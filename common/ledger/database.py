"""The append-only SQLite file that holds a data holder's ledger.

Each entry is chained to the one before. Nothing is changed or deleted, an entry is on disk before its transaction
returns, and several processes take turns. What an entry means is decided in `common.ledger.transactions` and
`client.guard`.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import LedgerError
from common.ledger.hash_chain import ENTRY_FIELDS, ORIGIN, Entry, Kind, canonical, hash_of

# Key in the versions of an entry: by which names the images are known that the entry vouches for.
FINGERPRINTS = "fingerprints"
_COLUMNS = ", ".join(ENTRY_FIELDS)
_APPEND_ONLY = ("entry", "fingerprint", "link", "part")
_BUSY_SECONDS = 60.0
_PAUSE_SECONDS = 0.002
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, kind TEXT NOT NULL, time TEXT NOT NULL, request_id TEXT NOT NULL,
    content_digest TEXT NOT NULL, dataset TEXT NOT NULL, event TEXT NOT NULL, versions TEXT NOT NULL,
    hash TEXT NOT NULL, UNIQUE (request_id, kind)
);
CREATE INDEX IF NOT EXISTS entry_of_run ON entry (json_extract(event, '$.run'), json_extract(event, '$.client'), kind);
CREATE TABLE IF NOT EXISTS fingerprint (
    row INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, image INTEGER NOT NULL, seq INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS fingerprint_of_entry ON fingerprint (seq);
CREATE TABLE IF NOT EXISTS link (
    row INTEGER PRIMARY KEY, image INTEGER NOT NULL, same INTEGER NOT NULL, seq INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS part (
    dataset TEXT NOT NULL, name TEXT NOT NULL, unit TEXT NOT NULL, images BLOB NOT NULL, units BLOB NOT NULL,
    PRIMARY KEY (dataset, name)
);
CREATE TABLE IF NOT EXISTS reply (
    request_id TEXT PRIMARY KEY, run TEXT NOT NULL, client TEXT NOT NULL, seq INTEGER NOT NULL, content BLOB NOT NULL
);
"""
_FOLLOWS = """
CREATE TRIGGER IF NOT EXISTS entry_follows BEFORE INSERT ON entry
WHEN NEW.seq <> 1 + (SELECT coalesce(max(seq), 0) FROM entry)
    OR NEW.prev_hash <> coalesce((SELECT hash FROM entry ORDER BY seq DESC LIMIT 1), printf('%064d', 0))
BEGIN SELECT RAISE(ABORT, 'an entry must follow the last one'); END;
"""


@dataclass(frozen=True)
class Head:
    """The number and the hash of a ledger's last entry."""

    seq: int
    hash: str


class Ledger:
    """An open ledger file.

    Write inside `transaction`. Reads outside a transaction see what is committed. A missing file is made, readable by
    its owner only. If `durable`, a transaction is on disk when it returns, even if the power fails. If not, a killed
    process loses nothing but a power failure may, so this is for simulations only.

    Raises:
        LedgerError: The file is not a ledger, or cannot be opened.
    """

    _check: Callable[[], None] | None = None
    _checked: tuple[int, ...] | None = None
    _appended = newest = Head(0, ORIGIN)

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        try:
            # Make a new file only. Opening and closing an existing file here would drop SQLite's locks on it.
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
            if tables and "reply" not in tables:
                raise sqlite3.DatabaseError("it is another program's database")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            # Only after the line above: otherwise simulations would wait for the disk here.
            _use_write_ahead_log(self._connection)
            # Without this, INSERT OR REPLACE deletes rows without running the triggers against deletion.
            self._connection.execute("PRAGMA recursive_triggers = ON")
            if not tables:
                self._connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}{_triggers()}COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the ledger {path} cannot be opened ({error})") from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def watch(self, check: Callable[[], None]) -> None:
        """Check the file now and after each change of its bytes.

        Raises:
            LedgerError: The check refuses the file.
        """
        self._check = check
        self.check_changed()

    def check_changed(self) -> None:
        """Check a watched file again if it has changed since the last check.

        It changes when SQLite moves its log into it, which is rare, or when something else writes to it.

        Raises:
            LedgerError: The check refuses the file, or another file is in its place.
        """
        if self._check is None:
            return
        state = _file_state(self.path)
        if state == self._checked:
            return
        # SQLite would write to a file that no longer has the ledger's name.
        if state is None or (self._checked is not None and state[:2] != self._checked[:2]):
            raise LedgerError(f"the ledger {self.path} was removed or replaced while it was in use")
        # Otherwise SQLite would answer from the pages in its memory, and not see what was copied over the file.
        self._connection.execute("PRAGMA shrink_memory")
        self._check()
        newest = self.newest
        if newest.seq and self.query("SELECT hash FROM entry WHERE seq = ?", (newest.seq,)) != [(newest.hash,)]:
            raise LedgerError(f"the ledger {self.path} was overwritten while it was in use: entry {newest.seq} is gone")
        self._checked = state

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that the block writes or nothing.

        Other writers wait meanwhile.

        Raises:
            LedgerError: The file could not be written or was overwritten, and nothing of the block was kept.
        """
        try:
            # IMMEDIATE takes the write lock now, so that what the block reads cannot change before it writes.
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be written ({error})") from None
        try:
            self.check_changed()
            self._appended = self.newest
            yield
            self._connection.execute("COMMIT")
            self.newest = self._appended
        except sqlite3.Error as error:
            self._roll_back()
            raise LedgerError(f"the ledger {self.path} cannot be written ({error})") from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT.

        Raises:
            LedgerError: The file is damaged.
        """
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be read ({error})") from None

    def insert(self, table: str, rows: Sequence[Sequence[Any]], columns: str) -> None:
        """Add rows to a table inside a transaction."""
        marks = ", ".join("?" * len(columns.split(",")))
        self._connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)  # noqa: S608

    def append(self, kind: Kind, request_id: str, event: dict[str, Any], **more: str) -> Entry:
        """Add an entry inside a transaction and return it.

        A second entry of the same kind for one request is refused. `more` holds `content_digest` and `dataset`, where
        they apply.
        """
        head = self.head()
        versions = _versions() if kind in ("genesis", "register") else {}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        draft = Entry(head.seq + 1, head.hash, kind, now, request_id, event=event, versions=versions, **more)
        entry = replace(draft, hash=hash_of(draft))
        values = vars(entry) | {"event": canonical(event), "versions": canonical(versions)}
        self.insert("entry", [[values[name] for name in ENTRY_FIELDS]], _COLUMNS)
        self._appended = Head(entry.seq, entry.hash)
        return entry

    def head(self) -> Head:
        """Return the head, with number 0 for a ledger without entries."""
        rows = self.query("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1")
        return Head(*rows[0]) if rows else Head(0, ORIGIN)

    def entries(self, where: str = "1", values: Sequence[Any] = ()) -> list[Entry]:
        """Return the entries that meet a condition, in order.

        Raises:
            LedgerError: The file is damaged.
        """
        stored = self.query(f"SELECT {_COLUMNS} FROM entry WHERE {where} ORDER BY seq", values)  # noqa: S608
        try:
            rows = [dict(zip(ENTRY_FIELDS, row, strict=True)) for row in stored]
            return [Entry(**row | {name: json.loads(row[name]) for name in ("event", "versions")}) for row in rows]
        except ValueError:
            raise LedgerError(f"the ledger {self.path} is damaged: an entry cannot be read") from None

    def keep_reply(self, request_id: str, run: str, client: str, content: bytes) -> None:
        """Keep a reply inside a transaction for sending it again."""
        values = [request_id, run, client, self.head().seq, content]
        self.insert("reply", [values], "request_id, run, client, seq, content")

    def reply(self, request_id: str) -> bytes | None:
        """Return the kept reply to a request, None if it is not kept."""
        rows = self.query("SELECT content FROM reply WHERE request_id = ?", (request_id,))
        return bytes(rows[0][0]) if rows else None

    def forget_replies(self, run: str, client: str, *, keep: int, spare: str = "") -> None:
        """Delete all but a client's newest replies in a run, inside a transaction.

        The reply to the request `spare` is kept beside them.
        """
        self._connection.execute(
            "DELETE FROM reply WHERE run = ?1 AND client = ?2 AND request_id <> ?4 AND seq NOT IN (SELECT seq FROM "
            "reply WHERE run = ?1 AND client = ?2 AND request_id <> ?4 ORDER BY seq DESC LIMIT ?3)",
            (run, client, keep, spare),
        )

    def erase_replies(self, client: str) -> int:
        """Delete all kept replies of a client and return their number.

        Their bytes in the file are overwritten.

        Raises:
            LedgerError: The file could not be written.
        """
        try:
            # Otherwise SQLite only marks the pages as free, and the bytes stay in the file.
            self._connection.execute("PRAGMA secure_delete = ON")
            with self.transaction():
                count = self._connection.execute("DELETE FROM reply WHERE client = ?", (client,)).rowcount
            # The log still holds the old pages until it is emptied into the file.
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be written ({error})") from None
        if busy:
            raise LedgerError(f"another process reads the ledger {self.path}: end it, and repeat the command")
        return count


def _file_state(file: Path) -> tuple[int, ...] | None:
    """Return a file's identity, size and times, None for a missing file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Change a file to write-ahead logging, waiting for other processes.

    SQLite's own timeout does not apply here. If two processes opened a new file at once, one would fail.
    """
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(_PAUSE_SECONDS)


def _triggers() -> str:
    """Return the SQL triggers that forbid changes, even by a bug of ours."""
    rules = [
        f"CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table} BEGIN "
        f"SELECT RAISE(ABORT, 'a ledger is only ever added to'); END;"
        for table in _APPEND_ONLY
        for verb in ("UPDATE", "DELETE")
    ]
    return "\n".join([*rules, _FOLLOWS])


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("bract", "dp-accounting", "flwr", "numpy")} | {FINGERPRINTS: "2"}
