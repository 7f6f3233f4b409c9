"""Images of a client under test and their neighbours with one more unit."""

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np

from common.config.sections import Unit
from common.data.client_dataset import Shard, shard
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared
from common.data.scan import Scan
from common.system.content_store import StoredRows


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one client in privacy units, some of them held out.

    Attributes:
        inputs: (n, ...) float32 features, or (n, side, side, channels) uint8 pixels.
        labels: (n,) int64.
        units: (n,) int64, equal for images of one privacy unit.
        held_out: (n,) bool, true for images that evaluate.
    """

    inputs: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, labels: np.ndarray, *, held_out: int) -> "Images":
        """Make each image its own unit and hold out the last ones.

        Args:
            inputs: (n, ...) features or pixels.
            labels: (n,) int64.
            held_out: Number of images that evaluate.
        """
        count = len(labels)
        return cls(inputs, labels.astype(np.int64), np.arange(count), np.arange(count) >= count - held_out)

    def with_unit(self, inputs: np.ndarray, labels: np.ndarray, *, held_out: bool = False) -> "Images":
        """Return the neighbouring images, with one more unit at the end.

        Args:
            inputs: (k, ...) images of the unit.
            labels: (k,) int64.
            held_out: Whether the unit evaluates instead of training.
        """
        count, unit = len(labels), int(self.units.max(initial=-1)) + 1
        return Images(
            np.concatenate([self.inputs, inputs.astype(self.inputs.dtype)]),
            np.concatenate([self.labels, labels.astype(np.int64)]),
            np.concatenate([self.units, np.full(count, unit)]),
            np.concatenate([self.held_out, np.full(count, held_out)]),
        )

    def without_training(self) -> "Images":
        """Return the held-out images alone.

        Every training batch is then empty.
        """
        return self.only(self.held_out)

    def without_held_out(self) -> "Images":
        """Return the training images alone.

        Every count is then zero.
        """
        return self.only(~self.held_out)

    def only(self, rows: np.ndarray) -> "Images":
        """Return some of the images.

        Args:
            rows: Indices, or an (n,) bool mask.
        """
        return Images(self.inputs[rows], self.labels[rows], self.units[rows], self.held_out[rows])

    @property
    def num_training_units(self) -> int:
        """Number of units that train."""
        return len(np.unique(self.units[~self.held_out]))

    def shard(
        self, classes: tuple[str, ...], *, num_units: int, private: bool, unit: Unit, num_subgroups: int = 0
    ) -> Shard:
        """Return the images as a shard, made by the client's own code.

        Args:
            classes: Class names.
            num_units: Declared size of the client, however many images there are.
            private: Whether clients add noise themselves.
            unit: The privacy unit.
            num_subgroups: Number of subgroups, which the images take in turn; 0 without subgroups.
        """
        count = len(self.labels)
        unknown = np.zeros(count, dtype=np.int32)
        scan = Scan(
            fingerprint="bench",
            labels=self.labels,
            digests=_digests("image", np.arange(count)),
            earlier_digests=np.zeros((count, 32), dtype=np.uint8),
            file_digests=_digests("file", np.arange(count)),
            usable=np.ones(count, dtype=bool),
            widths=unknown,
            heights=unknown,
            channels=unknown,
            depths=unknown,
            lows=unknown,
            highs=unknown,
            constant=unknown == 1,
            transparency=unknown,
            plain=unknown == 0,
            formats=("",) * count,
            num_train=count,
            classes=classes,
            unit_digests=_digests("unit", self.units),
            owners=None,
            client_names=(),
            faults=(),
        )
        # Plain arrays are indexed like stored ones.
        prepared = Prepared(scan, "bench", inputs=cast(StoredRows, self.inputs), seconds=0.0)
        sizes = np.array([num_units])
        everything = Partition(np.zeros(count, dtype=np.int32), self.held_out, sizes, sizes, images_unused=0)
        subgroups = np.arange(count) % num_subgroups if num_subgroups else None
        return shard(prepared, everything, 0, private=private, unit=unit, subgroups=subgroups)


def _digests(kind: str, numbers: np.ndarray) -> np.ndarray:
    """Return digests that sort like their numbers, shape (n, 32), uint8.

    Units are sorted by digest. A unit that is added must come last, or it would move the others.
    """
    names = [
        int(number).to_bytes(8, "big") + hashlib.sha256(f"{kind} {number}".encode()).digest()[:24] for number in numbers
    ]
    return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)
