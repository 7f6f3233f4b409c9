"""One client's rows, grouped into privacy units, and what names the images behind them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.config.schema import Unit
from common.data.partitioning.partition import Partition
from common.data.partitioning.privacy_units import unit_numbers
from common.errors import DataError
from common.randomness import keyed_uniform
from common.system.aligned_arrays import align_rows

if TYPE_CHECKING:
    from common.data.preprocessing import Prepared

_VOTE_KEY = b"which image of a unit votes"


@dataclass(frozen=True, eq=False)
class ImageDigests:
    """What names the images of one part of a client's data, whatever became of them; compared by identity.

    Attributes:
        files: (n, 32) uint8, SHA-256 of each file's bytes.
        pixels: (n, 32) uint8, SHA-256 of each image's pixels.
        units: (n,) int64, equal for images of one privacy unit.
    """

    files: np.ndarray
    pixels: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Shard:
    """One client's usable rows.

    Attributes:
        train_inputs: (a, ...) inputs to train on.
        train_labels: (a,) int64.
        test_inputs: (b, ...) inputs held out for evaluation.
        test_labels: (b,) int64.
        num_units: Declared size of the client, a public constant.
        train_digests: (a, 32) uint8, a name for each training image that depends on
            its pixels alone.
        train_units: (a,) int64, equal for rows of one privacy unit.
        evaluation_units: (v,) int64, rows held out that may vote under DP: one of each unit, and none of
            a unit that is trained on.
        train_holdings: All training images, copies included.
        test_holdings: All images held out, those that do not vote left out.
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


def shard(
    prepared: "Prepared", partition: Partition, partition_id: int, *, private: bool, unit: Unit = "image"
) -> Shard:
    """The usable rows of one client, copied into memory.

    Args:
        prepared: The whole source.
        partition: Who holds what.
        partition_id: In [0, num_clients).
        private: Keep one copy of equal images: they are of one unit, and must not count twice.
        unit: What is protected; `group` takes the source's column `unit`.

    Raises:
        DataError: Groups are to be protected and the source names none.
    """
    if unit == "group" and prepared.unit_digests is None:
        raise DataError(
            "privacy.unit='group' needs a source that says which images belong together: a manifest with a column unit"
        )
    mine = (partition.owner == partition_id) & prepared.usable
    in_train = np.arange(len(mine)) < prepared.num_train
    held = np.flatnonzero(mine & in_train & ~partition.held_out)
    test = np.flatnonzero(mine & partition.held_out)
    rows = np.concatenate([held, test])
    grouping = prepared.unit_digests if unit == "group" else None
    units = unit_numbers(prepared.digests[rows], None if grouping is None else grouping[rows])
    own, other = units[: len(held)], units[len(held) :]
    kept = _first_copies(prepared.digests[held]) if private else np.arange(len(held))
    votes, voting = _voters(other, own, prepared.digests[test])
    sizes = partition.num_groups if unit == "group" else partition.num_units
    train = held[kept]
    return Shard(
        train_inputs=_in_line(prepared.inputs[train]),
        train_labels=prepared.labels[train],
        test_inputs=np.ascontiguousarray(prepared.inputs[test]),
        test_labels=prepared.labels[test],
        num_units=int(sizes[partition_id]),
        train_digests=np.ascontiguousarray(prepared.digests[train]),
        train_units=own[kept],
        evaluation_units=votes,
        train_holdings=_holdings(prepared, held, own),
        test_holdings=_holdings(prepared, test[voting], other[voting]),
    )


def _in_line(rows: np.ndarray) -> np.ndarray:
    """Features in aligned memory, so that training rounds each row alike; pixels as they are."""
    return align_rows(rows) if rows.ndim == 2 else np.ascontiguousarray(rows)


def _holdings(prepared: "Prepared", rows: np.ndarray, units: np.ndarray) -> ImageDigests:
    return ImageDigests(prepared.file_digests[rows], prepared.digests[rows], units)


def _first_copies(digests: np.ndarray) -> np.ndarray:
    """Row numbers without repetitions of an image, in order."""
    return np.sort(np.unique(digests, axis=0, return_index=True)[1]) if len(digests) else np.zeros(0, dtype=np.int64)


def _voters(units: np.ndarray, trained: np.ndarray, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row of each unit that is not trained on, chosen by a keyed hash; and all rows of such units."""
    voting = ~np.isin(units, trained)
    order = np.argsort(keyed_uniform(_VOTE_KEY, digests), kind="stable")
    candidates = order[voting[order]]
    _, first = np.unique(units[candidates], return_index=True)
    return np.sort(candidates[first]), voting
