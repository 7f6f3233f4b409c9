"""Processes that end when the one that started them does, however that ended."""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl(2)
# Where the kernel cannot do it: the process watches for its parent itself. Flower's own watcher (for Windows, where a
# parent's number outlives it) asks the main thread to end, which may be asleep for minutes between two attempts.
_WATCHING_NODE = (
    "import os, sys, threading, time\n"
    "parent = int(sys.argv.pop(1))\n"
    "def watch():\n"
    "    while os.getppid() == parent:\n"
    "        time.sleep(0.2)\n"
    "    os._exit(1)\n"
    "threading.Thread(target=watch, daemon=True).start()\n"
    "from flwr.supercore.app_utils import start_parent_process_monitor\n"
    "from flwr.supernode.cli.flower_supernode import flower_supernode\n"
    "start_parent_process_monitor(parent)\n"
    "flower_supernode()\n"
)


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
        from flwr.supercore.app_utils import start_parent_process_monitor

        start_parent_process_monitor(parent)
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it had gone before the kernel was asked
        os._exit(1)


def watching_command(options: list[str]) -> list[str]:
    """How to start a SuperNode that watches for this process, where the kernel cannot do it."""
    return [sys.executable, "-P", "-c", _WATCHING_NODE, str(os.getpid()), *options]
