"""Checkpoint file that a server can resume a run from.

It never holds the state of private noise. A round that is repeated draws fresh keys.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.system.files import write_atomic

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "2"
_MODEL, _BEST, _STRATEGY = "model", "best", "strategy"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after a complete round.

    `facts` holds plain values, such as the run's name and the lines of its rounds. `best` is empty if no best model is
    kept. `strategy` is the strategy's own state.
    """

    facts: dict[str, Any]
    model: Mapping[str, np.ndarray]
    best: Mapping[str, np.ndarray]
    strategy: Mapping[str, np.ndarray]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to disk in place of the one before.

    Guarantee: on return the checkpoint is on disk. After a crash the folder holds the old or the new one, whole.
    """
    from safetensors.numpy import save

    groups = {_MODEL: checkpoint.model, _BEST: checkpoint.best, _STRATEGY: checkpoint.strategy}
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group, named in groups.items()
        for name, array in named.items()
    }
    order = {group: list(named) for group, named in groups.items()}
    metadata = {"format": _FORMAT, "order": json.dumps(order), "facts": json.dumps(checkpoint.facts)}
    write_atomic(folder / CHECKPOINT, save(tensors, metadata), durable=True, mode=0o666)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the last checkpoint of a run, None without one.

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
            if metadata.get("format") != _FORMAT:
                raise ConfigError(f"{file} was written by another version of Bract")
            order, facts = json.loads(metadata["order"]), json.loads(metadata["facts"])
            groups = {
                group: {name: opened.get_tensor(f"{group}/{name}") for name in order[group]}
                for group in (_MODEL, _BEST, _STRATEGY)
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({type(error).__name__})") from None
    return Checkpoint(facts, groups[_MODEL], groups[_BEST], groups[_STRATEGY])
