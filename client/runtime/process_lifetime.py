"""Processes that end when the one that started them does, however that ended."""

import ctypes
import os
import signal
import sys
import threading
import time

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl(2)
_LOOK_SECONDS = 0.2


def kernel_can_tether() -> bool:
    """Whether the kernel ends children with their parent."""
    return sys.platform == "linux"


def die_with(parent: int) -> None:
    """Let this process be killed as soon as its parent is gone.

    Called in the child, before anything else. Where the kernel cannot do it, a thread looks five times a second.

    Args:
        parent: Process id of the parent, as the parent knows it.
    """
    if not kernel_can_tether():
        watch_for(parent)
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it had gone before the kernel was asked
        os._exit(1)


def watch_for(parent: int) -> None:
    """End this process at once when its parent is gone, by a thread that looks.

    Flower's own watcher asks the main thread to end, which may be asleep for minutes between two attempts.

    Args:
        parent: Process id of the parent, as the parent knows it.
    """
    if sys.platform == "win32":  # where a parent's number outlives it
        from flwr.supercore.app_utils import start_parent_process_monitor

        start_parent_process_monitor(parent)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
