"""Facts of many clients: beside the checkpoint, whole, and written when they change only."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from server.state import client_roll
from server.state.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint
from server.state.client_roll import ClientRoll

MODEL = {"w": np.zeros(2, dtype=np.float32)}


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.state.checkpoint.MOST_INSIDE", 2)


def roll_of(*names: str) -> ClientRoll:
    return ClientRoll(dict.fromkeys(names, 10), dict.fromkeys(names, "ab"))


def checkpoint(roll: ClientRoll, rounds: int = 1) -> Checkpoint:
    facts: dict[str, Any] = {"run": "ab", "clients": roll.clients, "joined": {}, "bundles": roll.bundles}
    return Checkpoint(facts | {"rounds": [{}] * rounds}, MODEL, {}, {}, roll=roll)


def rolls_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("clients-*.json"))


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_checkpoint_gives_back_the_facts_of_few_and_of_many_clients(tmp_path: Path, names: str) -> None:
    saved = checkpoint(roll_of(*names))

    save_checkpoint(tmp_path, saved)

    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.facts == saved.facts
    assert len(rolls_in(tmp_path)) == (len(names) > 2)
    assert (b'"bundles' in (tmp_path / CHECKPOINT).read_bytes().replace(b"\\", b"")) == (len(names) == 2)


def test_a_roll_is_written_when_it_changes_only(tmp_path: Path) -> None:
    first = roll_of("a", "b", "c")
    save_checkpoint(tmp_path, checkpoint(first))
    (before,) = rolls_in(tmp_path)
    written = before.stat().st_ino

    save_checkpoint(tmp_path, checkpoint(first, rounds=2))
    assert [file.stat().st_ino for file in rolls_in(tmp_path)] == [written]

    save_checkpoint(tmp_path, checkpoint(roll_of("a", "b", "c", "d"), rounds=3))
    (after,) = rolls_in(tmp_path)
    assert after != before


def test_a_crash_before_the_new_checkpoint_leaves_the_roll_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = checkpoint(roll_of("a", "b", "c"))
    save_checkpoint(tmp_path, old)
    replace = os.replace

    def crash_at_the_checkpoint(source: Any, target: Any) -> None:
        if Path(target).name == CHECKPOINT:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash_at_the_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(roll_of("a", "b", "d")))

    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.facts == old.facts


@pytest.mark.parametrize("content", [None, b"", b'{"clients": {"a": 11}, "bundles": {}}'])
def test_a_missing_or_changed_roll_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    save_checkpoint(tmp_path, checkpoint(roll_of("a", "b", "c")))
    (file,) = rolls_in(tmp_path)
    file.unlink() if content is None else file.write_bytes(content)

    with pytest.raises(ConfigError, match="missing or damaged: restore it"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_names_no_roll_is_read_as_it_is(tmp_path: Path) -> None:
    assert client_roll.read_back(tmp_path, {"clients": {"a": 1}}) == {"clients": {"a": 1}}
