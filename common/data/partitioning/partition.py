"""The partition of images over clients, as values."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from common.data.scan import Scan


@dataclass(frozen=True)
class Partition:
    """The client of each entry with a mask of the held-out entries.

    Attributes:
        owner: (n,) int32 partition number of every entry; -1 where no client holds it.
        held_out: (n,) bool; true only for usable entries that a client holds.
        num_units: (num_clients,) int64, the declared size of each client: entries of its training pool before anything
            is held out, bad ones included. A public constant, which does not depend on which files are bad.
        num_groups: (num_clients,) int64, the same in groups of images that share a unit.
        images_unused: Number of training entries that no client holds.
    """

    owner: np.ndarray
    held_out: np.ndarray
    num_units: np.ndarray
    num_groups: np.ndarray
    images_unused: int

    def rows_of(self, client: int) -> np.ndarray:
        """Return the entries of a client in increasing order, (k,) int64."""
        order, bounds = self._by_owner
        return order[bounds[client] : bounds[client + 1]]

    @cached_property
    def _by_owner(self) -> tuple[np.ndarray, np.ndarray]:
        # Sorted once. Looking at every image for each client takes too long with a million images.
        order = np.argsort(self.owner, kind="stable")
        return order, np.searchsorted(self.owner[order], np.arange(len(self.num_units) + 1))


def class_counts(scan: "Scan", partition: Partition, *, held_out: bool | None = None) -> np.ndarray:
    """Count the usable images of each class at each client, (classes, clients) int64.

    Only simulations may call it: a real client never shows its class counts. `held_out` asks for held-out images or
    for those that are trained on; None for both.
    """
    counts = np.zeros((len(scan.classes), len(partition.num_units)), dtype=np.int64)
    asked = scan.usable if held_out is None else scan.usable & (partition.held_out == held_out)
    rows = np.flatnonzero(asked & (partition.owner >= 0))
    np.add.at(counts, (scan.labels[rows], partition.owner[rows]), 1)
    return counts
