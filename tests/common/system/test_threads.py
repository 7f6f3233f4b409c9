"""A process of a client keeps to one thread, also while another thread is loading torch."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from types import ModuleType

import pytest
import threadpoolctl
import torch

from common.system.threads import SharedContext, one_thread, pin_to_one_thread
from tests.support.house import product_files


def test_a_torch_that_is_still_being_loaded_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))

    pin_to_one_thread()


def test_a_loaded_torch_gets_one_thread() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pin_to_one_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_torch_is_told_even_where_it_says_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", told.append)

    pin_to_one_thread()

    assert told == [1]


def test_one_thread_holds_for_a_block_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_shared_context_is_left_by_the_last_one_whatever_the_order() -> None:
    steps = list[str]()

    def enter(stack: ExitStack) -> None:
        steps.append("enter")
        stack.callback(steps.append, "leave")

    context = SharedContext(enter)
    first, second = ExitStack(), ExitStack()
    for _ in range(2):
        first.enter_context(context)
        second.enter_context(context)
        first.close()
        assert steps.count("leave") < steps.count("enter")
        second.close()

    assert steps == ["enter", "leave"] * 2


def test_a_shared_context_that_cannot_be_entered_can_be_entered_later() -> None:
    faults = [OSError("no")]

    def enter(_: ExitStack) -> None:
        if faults:
            raise faults.pop()

    context = SharedContext(enter)
    with pytest.raises(OSError, match="no"), context:
        pass
    with context:
        pass


def test_each_thread_limits_blas_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = list[str]()
    monkeypatch.setattr(
        threadpoolctl, "threadpool_limits", lambda limits: limited.append(threading.current_thread().name)
    )

    for name in ("one", "two"):
        thread = threading.Thread(target=lambda: [pin_to_one_thread() for _ in range(3)], name=name)
        thread.start()
        thread.join()

    assert limited == ["one", "two"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives a process all cores")
def test_a_process_that_may_use_one_core_starts_no_more_threads() -> None:
    """As under a cluster's scheduler, on a node of 64 cores."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from common.system.threads import num_cores; print(num_cores(), os.cpu_count())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", str(os.cpu_count())]


def test_no_module_counts_the_cores_of_the_machine() -> None:
    """Each would start too many threads where the process may use fewer."""
    assert [file for file in product_files() if "os.cpu_count" in file.read_text()] == []
