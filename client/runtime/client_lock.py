"""Whether a client is running: its launcher holds a file locked for as long as it lives."""

import os
import sys
from pathlib import Path


def is_running(lock_file: Path) -> bool:
    """Whether somebody holds a client's lock; the file is neither made nor changed.

    Args:
        lock_file: See `Site.lock_file`; may be missing.
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
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of with the handle
    except OSError:
        return True
    return False
