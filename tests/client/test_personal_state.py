"""Personal tensors are on the disk of a real client for its owner alone, and last.

Drives `client.training.personal_tensors`, `client.home`.
"""

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from client.home import OwnHome, SimulatedHome
from client.session import ClientSession
from client.training.personal_tensors import PersonalState
from client.training.trainer import Trainer
from common.data.client_dataset import Shard
from common.errors import ConfigError

TENSORS = {"head": np.arange(3, dtype=np.float32)}


def test_tensors_are_for_their_owner_only_from_the_first_byte_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    replace = os.replace

    def look(before: Path, after: Path) -> None:
        seen.append(stat.S_IMODE(os.stat(before).st_mode))
        replace(before, after)

    monkeypatch.setattr(os, "replace", look)
    before = os.umask(0)
    try:
        PersonalState(tmp_path / "personal" / "ward", durable=False).keep(1, TENSORS)
    finally:
        os.umask(before)

    (file,) = (tmp_path / "personal" / "ward").iterdir()
    assert seen == [0o600]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("durable", [False, True])
def test_tensors_survive_a_power_failure_where_they_shall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode)))

    PersonalState(tmp_path, durable=durable).keep(1, TENSORS)

    assert flushed == ([False, True] if durable else [])


def test_a_real_clients_home_is_durable_and_a_simulated_one_as_the_run_says(tmp_path: Path) -> None:
    assert OwnHome().durable
    assert not SimulatedHome("00000", 0, True, False, tmp_path).durable
    assert SimulatedHome("00000", 0, True, True, tmp_path).durable


def test_a_round_starts_from_an_earlier_one_and_never_from_itself(tmp_path: Path) -> None:
    state = PersonalState(tmp_path, durable=False)
    for number in (1, 2):
        state.keep(number, {"head": np.full(3, number, dtype=np.float32)})

    starts = [state.before(number) for number in (1, 2, 3)]

    assert starts[0] is None
    assert [start["head"][0] for start in starts if start is not None] == [1, 2]


def test_each_client_run_and_plan_has_a_store_of_its_own(tmp_path: Path) -> None:
    def session(name: str, plan: str, *, durable: bool = False) -> ClientSession:
        trainer = SimpleNamespace(config=SimpleNamespace(privacy=SimpleNamespace(mechanism="none")))
        home = SimulatedHome(name, 0, True, durable, tmp_path)
        found = ClientSession(name, cast(Shard, None), cast(Trainer, trainer), None, home)
        vars(found)["plan"] = SimpleNamespace(digest=plan) if plan else None
        return found

    stores = [
        session(name, plan).personal(run)
        for name, plan, run in (("a", "", "run"), ("b", "", "run"), ("a", "", "other"), ("a", "plan", "run"))
    ]
    for number, store in enumerate(stores):
        store.keep(1, {"head": np.full(1, number, dtype=np.float32)})

    found = [store.before(2) for store in stores]
    assert [tensors["head"].tolist() for tensors in found if tensors is not None] == [[0], [1], [2], [3]]
    assert session("a", "", durable=True).personal("run").durable
    assert not stores[0].durable


def test_a_machine_without_the_run_s_folder_keeps_nothing_for_its_clients(tmp_path: Path) -> None:
    """A node of a cluster with a folder of its own would know some of a client's rounds only."""
    home = SimulatedHome("00000", 0, True, False, tmp_path / "elsewhere" / "run")

    for keep in (home.folder, home.holder):
        with pytest.raises(ConfigError, match=r"run is not on this machine.*must share it"):
            keep("run")
    assert not (tmp_path / "elsewhere").exists()
