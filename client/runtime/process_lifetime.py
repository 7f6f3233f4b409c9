"""Processes that end when their parent does, however the parent ended."""

import ctypes
import os
import signal
import sys
import threading
import time

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl(2)
_LOOK_SECONDS = 0.2


def kernel_can_tether() -> bool:
    """Return whether the kernel can end children with their parent."""
    return sys.platform == "linux"


def die_with(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent is gone.

    Call it in the child, before anything else. Where the kernel cannot do it, a thread looks five times a second.

    Args:
        parent: Process id of the parent, as the parent knows it.
    """
    if not kernel_can_tether():
        watch_for(parent)
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    # The parent may have ended before the kernel was asked, and then no signal ever comes.
    if os.getppid() != parent:
        os._exit(1)


def watch_for(parent: int) -> None:
    """Start a thread that ends this process when its parent is gone.

    Flower's own watcher asks the main thread to end, which may sleep for minutes between two attempts to connect.

    Args:
        parent: Process id of the parent, as the parent knows it.
    """
    # On Windows a child keeps the number of a parent that has ended, so `getppid` tells nothing.
    if sys.platform == "win32":
        from client.runtime.supernode_api import end_with_parent_on_windows

        end_with_parent_on_windows(parent)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
