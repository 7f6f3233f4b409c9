"""Values that describe a partition of images over clients."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    pass


class PartitionInput(Protocol):
    """What dealing needs to know of a source: `Prepared` and `Scan` both tell it.

    Attributes cover all n entries, bad ones included; see `common.data.scan.Scan`.
    """

    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102
    @property
    def digests(self) -> np.ndarray: ...  # noqa: D102
    @property
    def usable(self) -> np.ndarray: ...  # noqa: D102
    @property
    def num_train(self) -> int: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def unit_digests(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def owners(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def client_names(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Partition:
    """Who holds which entry, and which entries are held out.

    Attributes:
        owner: (n,) int32 partition number of every entry; -1 where nobody holds it.
        held_out: (n,) bool; only entries that a client holds and that are usable.
        num_units: (num_clients,) int64, the declared size of each client: entries of
            its training pool before anything is held out, bad ones included. A
            public constant, which does not depend on which files are bad.
        num_groups: (num_clients,) int64, the same in groups of images that share a unit.
        images_unused: Training entries that the partitioner gave to nobody.
    """

    owner: np.ndarray
    held_out: np.ndarray
    num_units: np.ndarray
    num_groups: np.ndarray
    images_unused: int


def class_counts(content: PartitionInput, partition: Partition) -> np.ndarray:
    """Usable images of each class at each client, (classes, clients) int64; simulations only."""
    counts = np.zeros((len(content.classes), len(partition.num_units)), dtype=np.int64)
    rows = np.flatnonzero(content.usable & (partition.owner >= 0))
    np.add.at(counts, (content.labels[rows], partition.owner[rows]), 1)
    return counts
