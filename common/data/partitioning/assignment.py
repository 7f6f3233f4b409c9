"""Deal a prepared source to simulated clients, once a machine, then read it by row."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.system.files import atomic_stream
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from common.data.preprocessing import Prepared
from common.data.partitioning.partition import Partition, PartitionInput

FORMAT = 4  # raise it when the same settings would deal otherwise


def load_or_make_partition(config: RunConfig, prepared: "Prepared") -> Partition:
    """The partition of a run; computed once, then read from the cache.

    Raises:
        ConfigError: The batch is larger than all training images together.
        DataError: The images cannot be dealt as asked.
    """
    check_batch(config, prepared.num_train)
    file = cache_folder("partitions") / f"{_key(config, prepared)}.npz"
    if not file.is_file():
        _save(file, make_partition(config, prepared))
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in ("owner", "held_out", "num_units", "num_groups")}
        return Partition(**arrays, images_unused=int(saved["images_unused"]))


def make_partition(config: RunConfig, content: PartitionInput) -> Partition:
    """Deal without looking into the cache or writing to it.

    Args:
        config: The run; seed, number of clients and the data section matter.
        content: What is dealt.

    Raises:
        DataError: The images cannot be dealt as asked.
    """
    from common.data.partitioning.partitioners import assign_clients, hold_out
    from common.data.partitioning.privacy_units import group_rows

    split, units = content.num_train, content.digests if content.unit_digests is None else content.unit_digests
    groups = group_rows(content.unit_digests, content.digests)
    owner = np.full(len(content.labels), -1, dtype=np.int32)
    owner[:split] = assign_clients(
        content.labels[:split],
        config.data,
        num_clients=config.num_clients,
        seed=config.seed,
        groups=None if groups is None else groups[:split],
        naturals=None if content.owners is None else content.owners[:split],
        names=content.client_names,
    )
    num_units = np.bincount(owner[:split] + 1, minlength=config.num_clients + 1)[1:]
    images_unused = int((owner[:split] < 0).sum())
    if split == len(owner):
        held_out = hold_out(units, fraction=config.data.test_fraction, key=_split_key(config))
    else:
        owner[split:] = _test_owners(config, content, owner[:split], groups)
        held_out = np.arange(len(owner)) >= split
    num_groups = num_units if groups is None else count_groups(owner[:split], groups[:split], config.num_clients)
    return Partition(owner, held_out & content.usable & (owner >= 0), num_units, num_groups, images_unused)


def count_groups(owner: np.ndarray, groups: np.ndarray, num_clients: int) -> np.ndarray:
    """(num_clients,) int64, how many groups of images each client holds; a group has one client."""
    _, first = np.unique(groups, return_index=True)
    return np.bincount(owner[first] + 1, minlength=num_clients + 1)[1:]


def _test_owners(
    config: RunConfig, content: PartitionInput, owner: np.ndarray, groups: np.ndarray | None
) -> np.ndarray:
    """The client of each entry of the source's own test set: its own, that of its unit, or by class."""
    from common.data.partitioning.partitioners import assign_test
    from common.data.partitioning.privacy_units import most_frequent

    split = content.num_train
    if config.data.partitioner == "natural" and content.owners is not None:
        return content.owners[split:]
    labels, units = content.labels[split:], content.digests if content.unit_digests is None else content.unit_digests
    if groups is not None:
        _, member = np.unique(groups[split:], return_inverse=True)
        labels = most_frequent(labels, member)[member]
    chosen = assign_test(labels, content.labels[:split], owner, units[split:], key=_split_key(config))
    if groups is None:
        return chosen
    home = np.full(groups.max() + 1, -1, dtype=np.int32)
    home[groups[:split]] = owner  # a group has one client
    trained = home[groups[split:]]
    return np.where(trained >= 0, trained, chosen)


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


def _split_key(config: RunConfig) -> bytes:
    return hashlib.sha256(f"held-out{config.seed}".encode()).digest()


def _key(config: RunConfig, prepared: "Prepared") -> str:
    data = config.data
    content = [prepared.key, hashlib.sha256(np.packbits(prepared.usable).tobytes()).hexdigest()]
    dealt = [data.partitioner, data.alpha, data.classes_per_client, data.shards_per_client, data.size_skew]
    parts = (FORMAT, config.seed, config.num_clients, dealt, data.min_client_size, data.test_fraction, content)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _save(file: Path, partition: Partition) -> None:
    with atomic_stream(file, durable=False, mode=0o600) as stream:
        np.savez(stream, **vars(partition))
