"""Images whose membership is guessed, with the public coins that decide it."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from common.config.schema import RunConfig
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared, prepare
from common.randomness import public_stream
from common.system.progress import ProgressFactory, no_progress


@dataclass(frozen=True)
class Population:
    """Data that all models of an attack share.

    Attributes:
        prepared: The whole source.
        partition: Who holds what when all images are in.
        targets: (n,) int64, entries that are attacked: all that clients train on, but those
            of which there are copies: a copy would stay in when its image is out.
        digest: Names the targets and their order.
    """

    prepared: Prepared
    partition: Partition
    targets: np.ndarray
    digest: str

    def without(self, members: np.ndarray) -> Partition:
        """Return the partition without the targets that are left out.

        Declared sizes stay: they are public constants, not what was found.

        Args:
            members: (n,) bool, targets that are in.
        """
        owner = self.partition.owner.copy()
        owner[self.targets[~members]] = -1
        return replace(self.partition, owner=owner)


def populate(config: RunConfig, progress: ProgressFactory = no_progress) -> Population:
    """Prepare and deal a run's images.

    Args:
        config: The run.
        progress: Shows the backbone pass.

    Raises:
        DataError: The source is missing, unusable, or cannot be dealt as asked.
        WeightsError: Pretrained weights are missing or wrong.
    """
    prepared = prepare(config, progress)
    partition = load_or_make_partition(config, prepared)
    entries = np.arange(len(prepared.scan.labels))
    held = prepared.scan.usable & (partition.owner >= 0) & ~partition.held_out & (entries < prepared.scan.num_train)
    _, first, copies = np.unique(prepared.scan.digests, axis=0, return_index=True, return_counts=True)
    single = np.zeros(len(entries), dtype=bool)
    single[first[copies == 1]] = True
    targets = np.flatnonzero(held & single)
    digest = hashlib.sha256(
        prepared.scan.digests[targets].tobytes() + prepared.scan.labels[targets].tobytes()
    ).hexdigest()
    return Population(prepared, partition, targets, digest)


def members_of(seed: int, model: int, num_targets: int) -> np.ndarray:
    """Draw the targets that one model is trained on.

    Each target has a fair coin, independent of every other model's.

    Args:
        seed: Root seed of the run.
        model: Number of the model, from 0.
        num_targets: How many coins.

    Returns:
        (num_targets,) bool.
    """
    return public_stream(seed, "membership", model).random(num_targets) < 0.5
