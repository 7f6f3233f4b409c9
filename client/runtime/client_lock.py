"""The lock that a client's launcher holds on a file while the client runs."""

import os
import sys
from pathlib import Path


def is_running(lock_file: Path) -> bool:
    """Return whether a process holds a client's lock, without changing the file.

    Args:
        lock_file: See `Site.lock_file`; a missing file counts as not locked.
    """
    try:
        handle = os.open(lock_file, os.O_RDWR)
    except OSError:
        return False
    try:
        return _is_locked(handle)
    finally:
        os.close(handle)


def _is_locked(handle: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        except OSError:
            return True
        return False
    import fcntl

    try:
        # Released when the handle is closed.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
