"""A checkpoint is whole or not there."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from server.state.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint

MODEL = {"z.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([1.5], dtype=np.float64)}


def checkpoint(rounds: int = 3) -> Checkpoint:
    state = {"m\x1f0": np.array([[7, 8]], dtype=np.int64)}
    return Checkpoint({"rounds": [{"round": n} for n in range(rounds)], "run": "ab"}, MODEL, {}, state)


def test_load_gives_back_what_was_saved_in_order(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint())

    found = load_checkpoint(tmp_path)

    assert found is not None
    assert found.facts == checkpoint().facts
    assert list(found.model) == ["z.weight", "a.bias"]
    for name, array in MODEL.items():
        assert found.model[name].dtype == array.dtype
        assert np.array_equal(found.model[name], array)
    assert found.best == {}
    assert found.strategy["m\x1f0"].tolist() == [[7, 8]]


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_a_crash_while_writing_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(3))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(4))
    found = load_checkpoint(tmp_path)

    assert found is not None
    assert len(found.facts["rounds"]) == 3


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, keep: int) -> None:
    save_checkpoint(tmp_path, checkpoint())
    file = tmp_path / CHECKPOINT
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(ConfigError, match="damaged"):
        load_checkpoint(tmp_path)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint())
    file = tmp_path / CHECKPOINT
    whole = file.read_bytes()

    for place in range(len(whole)):
        # Bit 0 turns the digit of the format into that of the format without a checksum.
        for bit in (1, 16):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(ConfigError, match=r"damaged|another version") as refused:
                load_checkpoint(tmp_path)
            assert "\n" not in str(refused.value)


def test_a_checkpoint_of_before_checksums_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    order = '{"model": ["w"], "best": [], "strategy": []}'
    metadata = {"format": "2", "order": order, "facts": '{"run": "ab"}'}
    save_file({"model/w": np.ones(2)}, tmp_path / CHECKPOINT, metadata)

    found = load_checkpoint(tmp_path)

    assert found is not None
    assert (found.facts, found.model["w"].tolist()) == ({"run": "ab"}, [1.0, 1.0])


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"model/w": np.zeros(1)}, tmp_path / CHECKPOINT, {"format": "0"})

    with pytest.raises(ConfigError, match="another version"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("order", ['{"model": [], "best": []}', "[]", '{"model": ["w"], "best": [], "strategy": []}'])
def test_a_file_whose_list_of_tensors_does_not_fit_is_damaged(tmp_path: Path, order: str) -> None:
    from safetensors.numpy import save_file

    save_file({"model/z": np.zeros(1)}, tmp_path / CHECKPOINT, {"format": "2", "order": order, "facts": "{}"})

    with pytest.raises(ConfigError, match="damaged"):
        load_checkpoint(tmp_path)


def test_arrays_keep_their_shape_and_values_whatever_lies_in_memory(tmp_path: Path) -> None:
    odd = {
        "number": np.array(2.5, dtype=np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "every other": np.arange(8, dtype=np.float32)[::2],
        "nothing": np.zeros((0, 3), dtype=np.float32),
    }
    save_checkpoint(tmp_path, Checkpoint({}, odd, {}, {}))

    found = load_checkpoint(tmp_path)

    assert found is not None
    for name, array in odd.items():
        assert (found.model[name].shape, found.model[name].tolist()) == (array.shape, array.tolist())


def test_the_state_of_steps_is_carried_where_there_is_one(tmp_path: Path) -> None:
    momentum = np.array([1 / 3, -2.0])
    save_checkpoint(tmp_path, checkpoint())
    without = load_checkpoint(tmp_path)
    # A run without such steps writes the checkpoint of before.
    assert b"steps" not in (tmp_path / CHECKPOINT).read_bytes()
    save_checkpoint(tmp_path, replace(checkpoint(), steps={"momentum": momentum}))
    found = load_checkpoint(tmp_path)

    assert without is not None
    assert found is not None
    assert without.steps == {}
    assert found.steps["momentum"].tobytes() == momentum.tobytes()
