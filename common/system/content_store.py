"""Rows on disk that are found by the content they were made from: what every cache here is.

Two files a store: `rows.bin`, rows of one shape, only ever appended; and `index.bin`,
a record of 36 bytes for each row: the 32-byte digest it belongs to, and a checksum
of the row. A row counts once its record is complete, so a process that is killed
loses what it had in its hands and nothing else.
"""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError

_RECORD = np.dtype([("digest", "V32"), ("checksum", "<u4")])


class StoredRows:
    """Some rows of a store, in an order of one's own, read when they are asked for.

    Args:
        stored: (m, ...) all rows.
        places: (n,) int64 row of each item, -1 where there is none.
    """

    def __init__(self, stored: np.ndarray, places: np.ndarray) -> None:
        self._stored = stored
        self._places = places

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) as an array would say it."""
        return (len(self._places), *self._stored.shape[1:])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of the values."""
        return self._stored.dtype

    @property
    def absent(self) -> np.ndarray:
        """(n,) bool: which items have no row."""
        return np.asarray(self._places < 0)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The rows that an index array, mask or slice asks for, copied into memory.

        Raises:
            DataError: One of them was never stored: its image cannot be used.
        """
        places = self._places[index]
        if np.any(places < 0):
            raise DataError("an image that cannot be used was asked for")
        return np.asarray(self._stored[places])


class ContentStore:
    """A folder of rows of one shape and type, shared by processes.

    Args:
        folder: Made if it is not there, for its owner only.
        row_shape: Shape of one row.
        dtype: Type of its values.
    """

    def __init__(self, folder: Path, row_shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._places: dict[bytes, int] = {}
        self._checksums: list[int] = []
        self.refresh()

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self._row_shape)) * self._dtype.itemsize

    def refresh(self) -> None:
        """Take over what other processes have added since."""
        file = self.folder / "index.bin"
        known = len(self)
        size = file.stat().st_size if file.is_file() else 0
        held = (self.folder / "rows.bin").stat().st_size // self._row_bytes if size else 0
        new = min(size // _RECORD.itemsize, held) - known
        if new <= 0:
            return
        with file.open("rb") as stream:
            stream.seek(known * _RECORD.itemsize)
            records = np.frombuffer(stream.read(new * _RECORD.itemsize), dtype=_RECORD)
        self._checksums += records["checksum"].tolist()
        self._places |= {digest.tobytes(): known + row for row, digest in enumerate(records["digest"])}

    def __len__(self) -> int:
        return len(self._checksums)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def append(self, digests: Sequence[bytes], rows: np.ndarray) -> None:
        """Add rows; those whose digest is already there are left out.

        Args:
            digests: 32 bytes each.
            rows: (k, *row_shape), of the store's type.
        """
        from filelock import FileLock

        with FileLock(self.folder / "append.lock"):
            self.refresh()
            fresh = [at for at, digest in enumerate(digests) if digest not in self._places]
            if not fresh:
                return
            block = np.ascontiguousarray(rows[fresh], dtype=self._dtype)
            records = np.empty(len(fresh), dtype=_RECORD)
            for at, row in enumerate(fresh):
                records[at] = (np.void(digests[row]), zlib.crc32(block[at].tobytes()))
            # What a killed process left behind the last complete record is cut off first.
            _write(self.folder / "rows.bin", len(self) * self._row_bytes, block.tobytes())
            _write(self.folder / "index.bin", len(self) * _RECORD.itemsize, records.tobytes())
            self.refresh()

    def rows_of(self, digests: np.ndarray) -> StoredRows:
        """The rows that belong to some digests; damaged ones count as missing and can be added anew.

        Args:
            digests: (n, 32) uint8.
        """
        places = np.array([self._places.get(digest.tobytes(), -1) for digest in digests], dtype=np.int64)
        stored = self._mapped()
        wanted = np.unique(places[places >= 0])
        damaged = [row for row in wanted if zlib.crc32(stored[row].tobytes()) != self._checksums[row]]
        if damaged:
            self._forget(damaged)
            places[np.isin(places, damaged)] = -1
        return StoredRows(stored, places)

    def _mapped(self) -> np.ndarray:
        shape = (len(self), *self._row_shape)
        if not len(self):
            return np.zeros(shape, dtype=self._dtype)
        return np.memmap(self.folder / "rows.bin", dtype=self._dtype, mode="r", shape=shape)

    def _forget(self, damaged: Sequence[int]) -> None:
        """Rename the records of damaged rows to digests that nothing has."""
        from filelock import FileLock

        with FileLock(self.folder / "append.lock"), (self.folder / "index.bin").open("r+b") as stream:
            for row in damaged:
                stream.seek(int(row) * _RECORD.itemsize)
                stream.write(os.urandom(32))
        gone = set(map(int, damaged))
        self._places = {digest: row for digest, row in self._places.items() if row not in gone}


def _write(file: Path, start: int, content: bytes) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as stream:
        stream.truncate(start)
        stream.seek(start)
        stream.write(content)
