"""The few images on an auditor's bench, and the same with one unit more."""

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np

from common.config.schema import RunConfig
from common.data.client_dataset import Shard, shard
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared
from common.system.content_store import StoredRows


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of one client, each in a unit, some of them held out.

    Attributes:
        inputs: (n, ...) float32 features, or (n, side, side, channels) uint8 pixels.
        labels: (n,) int64.
        units: (n,) int64, equal for rows of one privacy unit.
        held_out: (n,) bool, rows that evaluate.
    """

    inputs: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, labels: np.ndarray, *, held_out: int) -> "Images":
        """Each row a unit of its own, the last so many held out."""
        count = len(labels)
        return cls(inputs, labels.astype(np.int64), np.arange(count), np.arange(count) >= count - held_out)

    def with_unit(self, inputs: np.ndarray, labels: np.ndarray, *, held_out: bool = False) -> "Images":
        """One unit more, behind the others: the neighbour of these images.

        Args:
            inputs: (k, ...) rows of the unit.
            labels: (k,) int64.
            held_out: Whether it evaluates.
        """
        count, unit = len(labels), int(self.units.max(initial=-1)) + 1
        return Images(
            np.concatenate([self.inputs, inputs.astype(self.inputs.dtype)]),
            np.concatenate([self.labels, labels.astype(np.int64)]),
            np.concatenate([self.units, np.full(count, unit)]),
            np.concatenate([self.held_out, np.full(count, held_out)]),
        )

    def without_training(self) -> "Images":
        """Only what is held out: every training batch is empty."""
        return self.only(self.held_out)

    def without_held_out(self) -> "Images":
        """Only what is trained on: every count is zero."""
        return self.only(~self.held_out)

    def only(self, rows: np.ndarray) -> "Images":
        """Some of the rows."""
        return Images(self.inputs[rows], self.labels[rows], self.units[rows], self.held_out[rows])

    @property
    def num_training_units(self) -> int:
        """How many units train."""
        return len(np.unique(self.units[~self.held_out]))

    def shard(self, config: RunConfig, classes: tuple[str, ...], *, num_units: int) -> Shard:
        """These rows as the client's own code arranges them.

        Args:
            config: The run; the unit and the mechanism matter.
            classes: Class names.
            num_units: Declared size of the client, whatever is on the bench.
        """
        count = len(self.labels)
        digests = _digests("image", np.arange(count))
        prepared = Prepared(
            inputs=cast(StoredRows, self.inputs),  # indexed in the same way
            labels=self.labels,
            digests=digests,
            file_digests=_digests("file", np.arange(count)),
            usable=np.ones(count, dtype=bool),
            num_train=count,
            classes=classes,
            unit_digests=_digests("unit", self.units),
            owners=None,
            client_names=(),
            faults=(),
            seconds=0.0,
            key="bench",
        )
        sizes = np.array([num_units])
        everything = Partition(np.zeros(count, dtype=np.int32), self.held_out, sizes, sizes, images_unused=0)
        return shard(prepared, everything, 0, private=config.is_local_dp, unit=config.privacy.unit)


def _digests(kind: str, numbers: np.ndarray) -> np.ndarray:
    """(n, 32) uint8 that sort as the numbers do: a unit that is added stands behind the others."""
    names = [
        int(number).to_bytes(8, "big") + hashlib.sha256(f"{kind} {number}".encode()).digest()[:24] for number in numbers
    ]
    return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)
