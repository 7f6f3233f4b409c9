"""Checkpoint file that a server can resume a run from.

It never holds the state of private noise. A round that is repeated draws fresh keys.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.system.files import write_atomic
from server.state.client_roll import MOST_INSIDE, ClientRoll, move_out, read_back, remove_others

CHECKPOINT = "checkpoint.safetensors"
# Format 2, of version 0.1.0, has no checksum.
# In format 4 a file beside it holds the clients, which code before it does not look for.
_APART, _FORMAT, _UNCHECKED = "4", "3", "2"
# The checksum is taken with this text in its place.
_NO_CHECKSUM = "0" * 64
_MODEL, _BEST, _STRATEGY = "model", "best", "strategy"
# Only in checkpoints of runs with such steps. Those of before have none.
_STEPS = "steps"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after a complete round.

    `facts` holds plain values, such as the run's name and the lines of its rounds. `best` is empty if no best model is
    kept. `strategy` is the strategy's own state, `steps` that of the server's steps along noised sums, if it makes any.
    `roll` holds the facts by client too, which go into another file where they are many.
    """

    facts: dict[str, Any]
    model: Mapping[str, np.ndarray]
    best: Mapping[str, np.ndarray]
    strategy: Mapping[str, np.ndarray]
    steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    roll: ClientRoll | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to disk in place of the one before.

    Guarantee: on return the checkpoint is on disk. After a crash the folder holds the old or the new one, whole.
    """
    from safetensors.numpy import save

    groups = {_MODEL: checkpoint.model, _BEST: checkpoint.best, _STRATEGY: checkpoint.strategy}
    if checkpoint.steps:
        groups[_STEPS] = checkpoint.steps
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group, named in groups.items()
        for name, array in named.items()
    }
    facts, roll = checkpoint.facts, checkpoint.roll
    apart = roll is not None and len(roll.clients) > MOST_INSIDE
    if roll is not None and apart:
        facts = move_out(folder, facts, roll)
    order = {group: list(named) for group, named in groups.items()}
    metadata = {"format": _APART if apart else _FORMAT, "order": json.dumps(order), "facts": json.dumps(facts)}
    content = save(tensors, metadata | {"sha256": _NO_CHECKSUM})
    checksum = hashlib.sha256(content).hexdigest()
    write_atomic(folder / CHECKPOINT, _with_checksum(content, _NO_CHECKSUM, checksum), durable=True, mode=0o666)
    if roll is not None and apart:
        remove_others(folder, roll)


def _with_checksum(content: bytes, old: str, new: str) -> bytes:
    # Only the header's own field is replaced: inside `facts`, which is JSON in JSON, quotes are escaped.
    return content.replace(f'"sha256":"{old}"'.encode(), f'"sha256":"{new}"'.encode(), 1)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the last checkpoint of a run, None without one.

    A checkpoint of version 0.1.0 has no checksum and is read without. The checksum finds damage. It does not find a
    change by somebody who computes it anew.

    Raises:
        ConfigError: The file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") not in (_APART, _FORMAT, _UNCHECKED):
                raise ConfigError(f"{file} was written by another version of Bract")
            _check(file, metadata)
            order, facts = json.loads(metadata["order"]), read_back(folder, json.loads(metadata["facts"]))
            groups = {
                group: {name: opened.get_tensor(f"{group}/{name}") for name in order[group]}
                for group in (_MODEL, _BEST, _STRATEGY, *([_STEPS] if _STEPS in order else []))
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__})") from None
    return Checkpoint(facts, groups[_MODEL], groups[_BEST], groups[_STRATEGY], groups.get(_STEPS, {}))


def _check(file: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a file whose bytes are not those that were written.

    Raises:
        ConfigError: The checksum is missing or does not fit.
    """
    checksum = metadata.get("sha256", "")
    # One flipped bit turns format 3 into 2, so a format 2 with a checksum is damaged too.
    if metadata["format"] == _UNCHECKED and not checksum:
        return
    content = _with_checksum(file.read_bytes(), checksum, _NO_CHECKSUM)
    if metadata["format"] == _UNCHECKED or hashlib.sha256(content).hexdigest() != checksum:
        raise ConfigError(f"{file} is damaged (its checksum does not fit): restore it, or start a new run")
