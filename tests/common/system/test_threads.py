"""A process of a client keeps to one thread, also while another thread is loading torch."""

import sys
from types import ModuleType

import pytest
import torch

from common.system.threads import one_thread, pin_to_one_thread


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
