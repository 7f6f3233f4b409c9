"""Facts of many clients: beside the checkpoint, whole, and written when they change only."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from common.errors import ConfigError
from server.state import client_roll
from server.state.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint
from server.state.client_roll import ClientRoll

MODEL = {"w": np.zeros(2, dtype=np.float32)}


def roll_of(number: int, units: int = 10) -> ClientRoll:
    return ClientRoll({f"{client:05d}": units for client in range(number)}, {"00000": "ab"})


def checkpoint(roll: ClientRoll, rounds: int = 1) -> Checkpoint:
    facts: dict[str, Any] = {"run": "ab", "clients": roll.clients, "joined": {}, "bundles": roll.bundles}
    return Checkpoint(facts | {"rounds": [{}] * rounds}, MODEL, {}, {}, roll=roll)


def rolls_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("clients-*.json"))


@pytest.mark.parametrize("number", [1000, 1001])
def test_a_checkpoint_gives_back_the_facts_of_few_and_of_many_clients(tmp_path: Path, number: int) -> None:
    saved = checkpoint(roll_of(number))

    save_checkpoint(tmp_path, saved)

    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.facts == saved.facts
    assert len(rolls_in(tmp_path)) == (number > 1000)
    assert (b'"bundles' in (tmp_path / CHECKPOINT).read_bytes().replace(b"\\", b"")) == (number == 1000)


def test_a_roll_is_written_when_it_changes_only(tmp_path: Path) -> None:
    first = roll_of(1001)
    save_checkpoint(tmp_path, checkpoint(first))
    (before,) = rolls_in(tmp_path)
    written = before.stat().st_ino

    save_checkpoint(tmp_path, checkpoint(first, rounds=2))
    assert [file.stat().st_ino for file in rolls_in(tmp_path)] == [written]

    save_checkpoint(tmp_path, checkpoint(roll_of(1002), rounds=3))
    (after,) = rolls_in(tmp_path)
    assert after != before


def test_a_roll_that_was_damaged_meanwhile_is_written_anew(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(roll_of(1001)))
    (file,) = rolls_in(tmp_path)
    file.write_bytes(file.read_bytes()[:100])

    save_checkpoint(tmp_path, checkpoint(roll_of(1001), rounds=2))

    found = load_checkpoint(tmp_path)
    assert found is not None
    assert len(found.facts["rounds"]) == 2


def test_files_of_others_with_such_a_name_are_kept(tmp_path: Path) -> None:
    others = [tmp_path / "clients-notes.json", tmp_path / f"clients-{'a' * 17}.json"]
    for file in others:
        file.write_text("{}")

    for units in (10, 11):
        save_checkpoint(tmp_path, checkpoint(roll_of(1001, units)))

    assert all(file.is_file() for file in others)
    assert len(rolls_in(tmp_path)) == 3


@pytest.mark.parametrize(("number", "stated"), [(1000, "3"), (1001, "4")])
def test_code_that_knows_no_rolls_refuses_a_checkpoint_with_one_by_its_format(
    tmp_path: Path, number: int, stated: str
) -> None:
    save_checkpoint(tmp_path, checkpoint(roll_of(number)))

    with safe_open(tmp_path / CHECKPOINT, framework="np") as opened:
        assert opened.metadata()["format"] == stated


def test_a_crash_before_the_new_checkpoint_leaves_the_roll_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = checkpoint(roll_of(1001))
    save_checkpoint(tmp_path, old)
    replace = os.replace

    def crash_at_the_checkpoint(source: Any, target: Any) -> None:
        if Path(target).name == CHECKPOINT:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash_at_the_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(roll_of(1001, units=11)))

    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.facts == old.facts


@pytest.mark.parametrize("content", [None, b"", b'{"clients": {"a": 11}, "bundles": {}}'])
def test_a_missing_or_changed_roll_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    save_checkpoint(tmp_path, checkpoint(roll_of(1001)))
    (file,) = rolls_in(tmp_path)
    file.unlink() if content is None else file.write_bytes(content)

    with pytest.raises(ConfigError, match="missing or damaged: restore it"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_names_no_roll_is_read_as_it_is(tmp_path: Path) -> None:
    assert client_roll.read_back(tmp_path, {"clients": {"a": 1}}) == {"clients": {"a": 1}}
