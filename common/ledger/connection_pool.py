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
from common.ledger.transactions import Books

_MOST = 128  # each has up to three files open
_Key = tuple[int, Path, str]
_idle: "OrderedDict[_Key, tuple[Books, tuple[int, int]]]" = OrderedDict()
_lock = threading.Lock()


@contextmanager
def opened(file: Path, identity: str, make: Callable[[], Books]) -> Iterator[Books]:
    """A holder's books for one message.

    Args:
        file: The ledger.
        identity: What else the books depend on, such as the holder's public key.
        make: Opens them.
    """
    key = (os.getpid(), file, identity)
    books, place = _take(key) or _open(file, make)
    try:
        yield books
    except BaseException:
        books.ledger.close()  # whatever went wrong, nobody goes on with this connection
        raise
    _give_back(key, books, place)


def close_below(folder: Path) -> None:
    """Let go of all ledgers in a folder: each is one whole file afterwards, that can be copied.

    Raises:
        LedgerError: What is there is no ledger.
    """
    with _lock:
        found = [key for key in _idle if key[0] == os.getpid() and key[1].is_relative_to(folder)]
        books = [_idle.pop(key)[0] for key in found]
    for one in books:
        one.ledger.close()
    for rest in folder.glob("*.sqlite-wal"):  # of processes that were killed
        Ledger(rest.with_suffix(".sqlite"), durable=False).close()


def _take(key: _Key) -> tuple[Books, tuple[int, int]] | None:
    with _lock:
        found = _idle.pop(key, None)
    if found is None:
        return None
    books, place = found
    if _place(key[1]) != place:
        books.ledger.close()
        return None
    return found


def _open(file: Path, make: Callable[[], Books]) -> tuple[Books, tuple[int, int] | None]:
    """The books, and which file they are; None if it was replaced under our hands: they are then used once."""
    before = _place(file)
    books = make()
    place = _place(file)
    return books, place if before in (None, place) else None


def _give_back(key: _Key, books: Books, place: tuple[int, int] | None) -> None:
    spare: list[Books] = []
    with _lock:
        if place is None or key in _idle:
            spare.append(books)
        else:
            _idle[key] = (books, place)
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
