"""A pool of open ledger sessions.

Opening a ledger costs more than writing to it. Only one caller at a time uses a session. A ledger whose file was
replaced is opened again, so that a restored copy is read as what it is.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.ledger.database import Ledger
from common.ledger.transactions import LedgerSession

# Each session holds up to three files open.
_MAX_IDLE = 128
_FileId = tuple[int, int]
# A connection must not be used across a fork, so the process id belongs to the key.
_Key = tuple[int, Path, str]


class ConnectionPool:
    """The idle ledger sessions of one process, safe for use by several threads."""

    def __init__(self) -> None:
        self._idle: OrderedDict[_Key, tuple[LedgerSession, _FileId]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def session(self, file: Path, identity: str, make: Callable[[], LedgerSession]) -> Iterator[LedgerSession]:
        """Open a session or take an idle one for the caller's sole use.

        `identity` holds what else a session depends on, such as the holder's public key.
        """
        key = (os.getpid(), file, identity)
        session, file_id = self._acquire(key) or _open(file, make)
        try:
            yield session
        except BaseException:
            # After an error the state of the connection is unknown, so it is not used again.
            session.ledger.close()
            raise
        self._release(key, session, file_id)

    def close_below(self, folder: Path) -> None:
        """Close all ledgers in a folder to leave each as one complete file.

        Logs that killed processes left behind are merged into their ledgers, too.

        Raises:
            LedgerError: A file in the folder is not a ledger.
        """
        with self._lock:
            keys = [key for key in self._idle if key[0] == os.getpid() and key[1].is_relative_to(folder)]
            sessions = [self._idle.pop(key)[0] for key in keys]
        for session in sessions:
            session.ledger.close()
        for log in folder.glob("*.sqlite-wal"):
            Ledger(log.with_suffix(".sqlite"), durable=False).close()

    def _acquire(self, key: _Key) -> tuple[LedgerSession, _FileId] | None:
        with self._lock:
            idle = self._idle.pop(key, None)
        # A connection to a replaced file would go on reading the old file, so it is closed.
        if idle is not None and _file_id(key[1]) != idle[1]:
            idle[0].ledger.close()
            return None
        return idle

    def _release(self, key: _Key, session: LedgerSession, file_id: _FileId | None) -> None:
        spare: list[LedgerSession] = []
        with self._lock:
            if file_id is None or key in self._idle:
                spare.append(session)
            else:
                self._idle[key] = (session, file_id)
            while len(self._idle) > _MAX_IDLE:
                spare.append(self._idle.popitem(last=False)[1][0])
        for unused in spare:
            unused.ledger.close()


def _open(file: Path, make: Callable[[], LedgerSession]) -> tuple[LedgerSession, _FileId | None]:
    """Open a session and return it with the id of its file."""
    before = _file_id(file)
    session = make()
    after = _file_id(file)
    return session, after if before in (None, after) else None


def _file_id(file: Path) -> _FileId | None:
    """Return a file's device and inode, None if the file is missing."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
