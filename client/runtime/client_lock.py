"""The lock that a client's launcher holds on a file while the client runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.client_config import Site
from common.errors import ConfigError

_INSTANT = 0.1


@contextmanager
def hold_lock(site: Site) -> Iterator[None]:
    """Hold a client's lock while the block runs.

    Raises:
        ConfigError: The client is running.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(site.lock_file, mode=0o600)
    try:
        # `is_running` holds a shared lock for an instant, and a live page asks it twice a second.
        lock.acquire(timeout=_INSTANT, poll_interval=_INSTANT / 5)
    except Timeout:
        raise ConfigError(f"the client in {site.folder} is running already: stop that process first") from None
    try:
        yield
    finally:
        lock.release()


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
