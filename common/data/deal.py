"""Deal a prepared source to simulated clients, once a machine, then read it by row."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.prepared import Prepared
from common.errors import ConfigError
from common.sections import RunConfig


@dataclass(frozen=True)
class Partition:
    """Who holds which row, and which rows are held out.

    Attributes:
        owner: (n,) int32 partition number of every row.
        held_out: (n,) bool.
        num_units: (num_clients,) int64, the declared size of each client: rows of
            its training pool before anything is held out. A public constant.
    """

    owner: np.ndarray
    held_out: np.ndarray
    num_units: np.ndarray


@dataclass(frozen=True)
class Shard:
    """One client's rows.

    Attributes:
        train_inputs: (a, ...) inputs to train on.
        train_labels: (a,) int64.
        test_inputs: (b, ...) inputs held out for evaluation.
        test_labels: (b,) int64.
        num_units: Declared size of the client, a public constant.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_units: int


def deal(config: RunConfig, prepared: Prepared) -> Partition:
    """The partition of a run; computed once, then read from beside the source.

    Raises:
        ConfigError: The batch is larger than all training images together.
        DataError: The images cannot be dealt as asked.
    """
    check_batch(config, prepared.num_train)
    file = prepared.folder / f"partition-{_key(config)}.npz"
    if not file.is_file():
        _save(file, _deal(config, prepared))
    with np.load(file) as saved:
        return Partition(saved["owner"], saved["held_out"], saved["num_units"])


def check_batch(config: RunConfig, num_train: int) -> None:
    """Refuse a batch that no client could ever fill.

    Raises:
        ConfigError: The batch is larger than all training images together.
    """
    if config.training.batch_size > num_train:
        raise ConfigError(
            f"training.batch-size={config.training.batch_size} but there are only {num_train} training images in all: "
            "use a smaller batch"
        )


def shard(prepared: Prepared, partition: Partition, partition_id: int, *, private: bool) -> Shard:
    """The rows of one client, copied into memory.

    Args:
        prepared: The whole source.
        partition: Who holds what.
        partition_id: In [0, num_clients).
        private: Keep one copy of equal images: together they are one unit, and must not vote twice.
    """
    mine = partition.owner == partition_id
    train = np.flatnonzero(mine & ~partition.held_out)
    if private and len(train):
        train = train[np.sort(np.unique(prepared.digests[train], axis=0, return_index=True)[1])]
    test = np.flatnonzero(mine & partition.held_out)
    return Shard(
        np.ascontiguousarray(prepared.inputs[train]),
        prepared.labels[train],
        np.ascontiguousarray(prepared.inputs[test]),
        prepared.labels[test],
        int(partition.num_units[partition_id]),
    )


def class_counts(prepared: Prepared, partition: Partition) -> np.ndarray:
    """Images of each class at each client, (classes, clients) int64; simulations only."""
    counts = np.zeros((len(prepared.classes), len(partition.num_units)), dtype=np.int64)
    np.add.at(counts, (prepared.labels, partition.owner), 1)
    return counts


def _key(config: RunConfig) -> str:
    data = config.data
    parts = [config.seed, config.num_clients, data.partitioner, data.alpha, data.test_fraction]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _save(file: Path, partition: Partition) -> None:
    handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".npz")
    with os.fdopen(handle, "wb") as stream:
        np.savez(stream, owner=partition.owner, held_out=partition.held_out, num_units=partition.num_units)
    os.replace(scratch, file)


def _deal(config: RunConfig, prepared: Prepared) -> Partition:
    from common.data.partition import assign_clients, assign_test, hold_out

    key = hashlib.sha256(f"held-out{config.seed}".encode()).digest()
    split = prepared.num_train
    train_labels = prepared.labels[:split]
    owner = assign_clients(train_labels, config.data, num_clients=config.num_clients, seed=config.seed)
    num_units = np.bincount(owner, minlength=config.num_clients)
    if split == len(prepared.labels):
        held_out = hold_out(prepared.digests, fraction=config.data.test_fraction, key=key)
        return Partition(owner, held_out, num_units)
    test = assign_test(prepared.labels[split:], train_labels, owner, prepared.digests[split:], key=key)
    held_out = np.arange(len(prepared.labels)) >= split
    return Partition(np.concatenate([owner, test]), held_out, num_units)
