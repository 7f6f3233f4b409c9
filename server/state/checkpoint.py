"""A run after a complete round, in one file: what a server needs to go on as if nothing had happened.

Private noise is never in it: a round that is run again draws fresh keys.
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
    """State after a complete round.

    Attributes:
        facts: Plain values: the run's name, the round, lines of the history, and so on.
        model: Name -> array, in order.
        best: The best model so far, if one is kept.
        strategy: Tensors of the strategy.
    """

    facts: dict[str, Any]
    model: Mapping[str, np.ndarray]
    best: Mapping[str, np.ndarray]
    strategy: Mapping[str, np.ndarray]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole, on disk when this returns; the one before it stays until then.

    Args:
        folder: The run's folder.
        checkpoint: What to write.
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
    """The latest checkpoint of a run; None if it was stopped before there was one.

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
