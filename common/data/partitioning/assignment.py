"""Partition of a scanned source over simulated clients, cached once it is made."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from common.config.schema import RunConfig
from common.config.sections import DataConfig, TrainingConfig
from common.data.array_files import save_arrays
from common.data.partitioning.partition import Partition
from common.errors import ConfigError
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from common.data.preprocessing import Scanned
    from common.data.scan import Scan

FORMAT = 5  # raise it when the same settings would give another partition


def load_or_make_partition(config: RunConfig, scanned: "Scanned") -> Partition:
    """Return a run's partition, read from the cache if it was made before.

    Raises:
        ConfigError: The batch is larger than all training images together.
        DataError: The images cannot be divided as the settings ask.
    """
    scan, data, run = scanned.scan, config.data, (config.seed, config.num_clients)
    check_batch(config.training, scan.num_train)
    # Which files are usable belongs to the key: unusable images are never held out.
    content = [scanned.key, hashlib.sha256(np.packbits(scan.usable).tobytes()).hexdigest()]
    settings = [data.partitioner, data.alpha, data.classes_per_client, data.shards_per_client, data.size_skew]
    parts = (FORMAT, *run, settings, data.min_client_size, data.test_fraction, content)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    file = cache_folder("partitions") / f"{key}.npz"
    if not file.is_file():
        save_arrays(file, vars(make_partition(scan, data, num_clients=config.num_clients, seed=config.seed)))
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in ("owner", "held_out", "num_units", "num_groups")}
        return Partition(**arrays, images_unused=int(saved["images_unused"]))


def make_partition(scan: "Scan", data: DataConfig, *, num_clients: int, seed: int) -> Partition:
    """Assign a source's images to clients and to training or evaluation.

    Raises:
        DataError: The images cannot be divided as the settings ask.
    """
    from common.data.partitioning.partitioners import assign_clients, hold_out
    from common.data.partitioning.privacy_units import group_rows

    split = scan.num_train
    groups = group_rows(scan.unit_digests, scan.digests)
    owner = np.full(len(scan.labels), -1, dtype=np.int32)
    owner[:split] = assign_clients(
        scan.labels[:split],
        data,
        num_clients=num_clients,
        seed=seed,
        groups=None if groups is None else groups[:split],
        naturals=None if scan.owners is None else scan.owners[:split],
        names=scan.client_names,
    )
    # Counted before anything is held out and with bad files: a public size must not depend on either.
    num_units = np.bincount(owner[:split] + 1, minlength=num_clients + 1)[1:]
    images_unused = int((owner[:split] < 0).sum())
    key = hashlib.sha256(f"held-out{seed}".encode()).digest()
    if split == len(owner):
        units = scan.digests if scan.unit_digests is None else scan.unit_digests
        held_out = hold_out(units, fraction=data.test_fraction, key=key)
    else:
        naturals = scan.owners if data.partitioner == "natural" else None
        owner[split:] = _test_owners(scan, owner[:split], groups, key) if naturals is None else naturals[split:]
        held_out = np.arange(len(owner)) >= split
    num_groups = num_units if groups is None else count_groups(owner[:split], groups[:split], num_clients)
    return Partition(owner, held_out & scan.usable & (owner >= 0), num_units, num_groups, images_unused)


def count_groups(owner: np.ndarray, groups: np.ndarray, num_clients: int) -> np.ndarray:
    """Count the groups of images that each client holds.

    A group belongs to one client; -1 in `owner` stands for no client.
    """
    _, first = np.unique(groups, return_index=True)
    return np.bincount(owner[first] + 1, minlength=num_clients + 1)[1:]


def _test_owners(scan: "Scan", owner: np.ndarray, groups: np.ndarray | None, key: bytes) -> np.ndarray:
    """Return the client of each test image."""
    from common.data.partitioning.partitioners import assign_test
    from common.data.partitioning.privacy_units import most_frequent

    split = scan.num_train
    labels, units = scan.labels[split:], scan.digests if scan.unit_digests is None else scan.unit_digests
    if groups is not None:
        _, member = np.unique(groups[split:], return_inverse=True)
        labels = most_frequent(labels, member)[member]
    chosen = assign_test(labels, scan.labels[:split], owner, units[split:], key=key)
    if groups is None:
        return chosen
    # A unit must stay at one client, so its test images follow its training images.
    client_of_group = np.full(groups.max() + 1, -1, dtype=np.int32)
    client_of_group[groups[:split]] = owner
    trained = client_of_group[groups[split:]]
    return np.where(trained >= 0, trained, chosen)


def check_batch(training: TrainingConfig, num_train: int) -> None:
    """Refuse a written batch that no client could ever fill.

    A default gives way.

    Raises:
        ConfigError: The batch is larger than all training images together.
    """
    written = training.batch_size
    if isinstance(written, int) and written > num_train:
        raise ConfigError(
            f"training.batch-size={written} but there are only {num_train} training images in all: use a smaller batch"
        )
