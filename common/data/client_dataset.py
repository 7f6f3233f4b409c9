"""The images of one client as arrays, grouped into privacy units."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from common.config.sections import Unit
from common.data.image_digests import ImageDigests
from common.data.partitioning.partition import Partition
from common.data.partitioning.privacy_units import check_unit, unit_numbers
from common.privacy.clipping import row_norms
from common.randomness import keyed_uniform
from common.system.aligned_arrays import align_rows

if TYPE_CHECKING:
    from common.data.preprocessing import Prepared
    from common.data.scan import Scan

_CHOICE_KEY = b"which image of a unit votes"


@dataclass(frozen=True)
class Shard:
    """The usable images of one client.

    Attributes:
        train_inputs: (a, ...) features or pixels to train on.
        train_labels: (a,) int64.
        test_inputs: (b, ...) features or pixels held out for evaluation.
        test_labels: (b,) int64.
        num_units: Declared size of the client, a public constant.
        train_digests: (a, 32) uint8, SHA-256 of each training image's pixels.
        train_units: (a,) int64, equal for images of one privacy unit.
        evaluation_units: (v,) int64, the held-out rows that are counted under DP: one row of each unit, and none of a
            unit that is trained on.
        train_holdings: Digests of all training images, copies included.
        test_holdings: Digests of the held-out images whose units are not trained on.
        test_subgroups: (b,) int64, the place of each held-out image's subgroup; empty without subgroups.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_units: int
    train_digests: np.ndarray
    train_units: np.ndarray
    evaluation_units: np.ndarray
    train_holdings: ImageDigests
    test_holdings: ImageDigests
    test_subgroups: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    # Kept, because norms take half as long as a step.
    @cached_property
    def train_norms(self) -> np.ndarray:
        """L2 norms of the training features, (a,) float64.

        A norm is not finite where its row is not.
        """
        return row_norms(self.train_inputs)

    @property
    def training_votes(self) -> np.ndarray:
        """Training rows whose labels are counted under DP, (u,) int64.

        There is one row of each unit.
        """
        nowhere = np.zeros(0, dtype=np.int64)
        return _evaluation_rows(self.train_units, nowhere, self.train_digests)[0]


def shard(
    prepared: "Prepared",
    partition: Partition,
    partition_id: int,
    *,
    private: bool,
    unit: Unit = "image",
    subgroups: np.ndarray | None = None,
) -> Shard:
    """Return the usable images of one client, copied into memory.

    A private shard keeps one copy of equal images: they are one unit and must not count twice. `subgroups` holds the
    place of each entry's subgroup.

    Raises:
        DataError: The unit is `group` and the source names no groups.
    """
    scan = prepared.scan
    check_unit(unit, has_groups=scan.unit_digests is not None)
    own = partition.rows_of(partition_id)
    own = own[scan.usable[own]]
    held_out = partition.held_out[own]
    train, test = own[(own < scan.num_train) & ~held_out], own[held_out]
    both = np.concatenate([train, test])
    # Units are numbered over both parts, so that a unit with images on both sides is recognised as one.
    grouping = scan.unit_digests if unit == "group" else None
    units = unit_numbers(scan.digests[both], None if grouping is None else grouping[both])
    train_units, test_units = units[: len(train)], units[len(train) :]
    kept = _first_copies(scan.digests[train]) if private else np.arange(len(train))
    chosen, untrained = _evaluation_rows(test_units, train_units, scan.digests[test])
    sizes = partition.num_groups if unit == "group" else partition.num_units
    rows = train[kept]
    return Shard(
        train_inputs=_training_array(prepared.inputs[rows]),
        train_labels=scan.labels[rows],
        test_inputs=np.ascontiguousarray(prepared.inputs[test]),
        test_labels=scan.labels[test],
        num_units=int(sizes[partition_id]),
        train_digests=np.ascontiguousarray(scan.digests[rows]),
        train_units=train_units[kept],
        evaluation_units=chosen,
        # With the copies: the ledger must know every file of a charged image.
        train_holdings=_digests(scan, train, train_units),
        test_holdings=_digests(scan, test[untrained], test_units[untrained]),
        test_subgroups=np.zeros(0, dtype=np.int64) if subgroups is None else subgroups[test],
    )


def _training_array(inputs: np.ndarray) -> np.ndarray:
    """Copy features into aligned memory."""
    # BLAS may round a row differently at another alignment, so features must always start on the same boundary.
    return align_rows(inputs) if inputs.ndim == 2 else np.ascontiguousarray(inputs)


def _digests(scan: "Scan", rows: np.ndarray, units: np.ndarray) -> ImageDigests:
    return ImageDigests(scan.file_digests[rows], scan.digests[rows], units, scan.earlier_digests[rows])


def _first_copies(digests: np.ndarray) -> np.ndarray:
    """Return the first row of each different image, in row order."""
    return np.sort(np.unique(digests, axis=0, return_index=True)[1]) if len(digests) else np.zeros(0, dtype=np.int64)


def _evaluation_rows(
    units: np.ndarray, trained_units: np.ndarray, digests: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose one row of each unit that is not trained on.

    Returns the chosen rows and a mask of all rows of such units.
    """
    untrained = ~np.isin(units, trained_units)
    # A keyed hash of the pixels chooses the row, so that the choice does not depend on file names or on their order.
    order = np.argsort(keyed_uniform(_CHOICE_KEY, digests), kind="stable")
    candidates = order[untrained[order]]
    _, first = np.unique(units[candidates], return_index=True)
    return np.sort(candidates[first]), untrained
