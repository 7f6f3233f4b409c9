"""Ledgers kept open between messages: opening one costs more than writing to it.

Whoever takes one has it alone. A file that was replaced under an open ledger is opened anew, so that a restored copy
is read as what it is.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.ledger.database import Ledger
from common.ledger.transactions import LedgerSession

_MOST = 128  # each has up to three files open
_Key = tuple[int, Path, str]
_idle: "OrderedDict[_Key, tuple[LedgerSession, tuple[int, int]]]" = OrderedDict()
_lock = threading.Lock()


@contextmanager
def opened(file: Path, identity: str, make: Callable[[], LedgerSession]) -> Iterator[LedgerSession]:
    """A holder's books for one message.

    Args:
        file: The ledger.
        identity: What else the books depend on, such as the holder's public key.
        make: Opens them.
    """
    key = (os.getpid(), file, identity)
    session, place = _acquire(key) or _open(file, make)
    try:
        yield session
    except BaseException:
        session.ledger.close()  # whatever went wrong, nobody goes on with this connection
        raise
    _release(key, session, place)


def close_below(folder: Path) -> None:
    """Let go of all ledgers in a folder: each is one whole file afterwards, that can be copied.

    Raises:
        LedgerError: What is there is no ledger.
    """
    with _lock:
        found = [key for key in _idle if key[0] == os.getpid() and key[1].is_relative_to(folder)]
        session = [_idle.pop(key)[0] for key in found]
    for one in session:
        one.ledger.close()
    for rest in folder.glob("*.sqlite-wal"):  # of processes that were killed
        Ledger(rest.with_suffix(".sqlite"), durable=False).close()


def _acquire(key: _Key) -> tuple[LedgerSession, tuple[int, int]] | None:
    with _lock:
        found = _idle.pop(key, None)
    if found is None:
        return None
    session, place = found
    if _place(key[1]) != place:
        session.ledger.close()
        return None
    return found


def _open(file: Path, make: Callable[[], LedgerSession]) -> tuple[LedgerSession, tuple[int, int] | None]:
    """The books, and which file they are; None if it was replaced under our hands: they are then used once."""
    before = _place(file)
    session = make()
    place = _place(file)
    return session, place if before in (None, place) else None


def _release(key: _Key, session: LedgerSession, place: tuple[int, int] | None) -> None:
    spare: list[LedgerSession] = []
    with _lock:
        if place is None or key in _idle:
            spare.append(session)
        else:
            _idle[key] = (session, place)
        while len(_idle) > _MOST:
            spare.append(_idle.popitem(last=False)[1][0])
    for one in spare:
        one.ledger.close()


def _place(file: Path) -> tuple[int, int] | None:
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
