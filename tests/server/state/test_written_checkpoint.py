"""A checkpoint is on the disk, with its name, before anything goes on.

Drives `server.state.checkpoint`.
"""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from server.state.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from server.state.client_roll import ClientRoll


def test_a_checkpoint_is_on_the_disk_before_the_next_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, bool]] = []

    def note(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / CHECKPOINT).exists()))

    monkeypatch.setattr(os, "fsync", note)

    save_checkpoint(tmp_path, Checkpoint({"run": "ab"}, {"w": np.zeros(2)}, {}, {}))

    # First the content, under a name that nobody reads, and then the folder with the name.
    assert synced == [(False, False), (True, True)]


def test_facts_of_many_clients_are_on_the_disk_before_the_checkpoint_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []

    def note(_: int) -> None:
        synced.append((len(list(tmp_path.glob("clients-*.json"))), (tmp_path / CHECKPOINT).exists()))

    monkeypatch.setattr(os, "fsync", note)
    roll = ClientRoll({f"{client:05d}": 10 for client in range(1001)}, {})

    save_checkpoint(tmp_path, Checkpoint({"run": "ab"}, {"w": np.zeros(2)}, {}, {}, roll=roll))

    assert synced == [(0, False), (1, False), (1, False), (1, True)]
