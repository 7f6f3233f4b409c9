"""A store of array rows on disk, keyed by digests.

A digest names the content that a row was made from. A store has two files. `rows.bin` holds rows of one shape and is
only ever appended to. `index.bin` holds a record of 36 bytes for each row: its 32-byte digest and a checksum. A row
counts once its record is complete, so a killed process loses only the rows that it was writing.
"""

import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.system.files import make_folder

_RECORD = np.dtype([("digest", "V32"), ("checksum", "<u4")])
# A system maps neighbours of a page that is read, 64 KiB of them on Linux. So many bytes may be mapped by reading.
_NEIGHBOURS, _MOST_MAPPED = 2**16, 2**28


class StoredRows:
    """A selection of a store's rows that are read when they are indexed.

    `places`, (n,) int64, holds the row of each item, -1 for an item without one.
    """

    def __init__(self, stored: np.ndarray, places: np.ndarray) -> None:
        self._stored = stored
        self._places = places
        self._read = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (n, ...) of the selection."""
        return (len(self._places), *self._stored.shape[1:])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of the values."""
        return self._stored.dtype

    @property
    def absent(self) -> np.ndarray:
        """(n,) bool, True for items without a row."""
        return np.asarray(self._places < 0)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the rows of an index array, mask or slice, copied into memory.

        Raises:
            DataError: A row was never stored, because its image is unusable.
        """
        places = self._places[index]
        if np.any(places < 0):
            raise DataError("an unusable image was requested")
        step = _rows_at_once(self._stored)
        if len(places) <= step:
            return self._copied(places)
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        for start in range(0, len(places), step):
            rows[start : start + step] = self._copied(places[start : start + step])
        return rows

    def _copied(self, places: np.ndarray) -> np.ndarray:
        rows = np.asarray(self._stored[places])
        self._read += len(places)
        if self._read >= _rows_at_once(self._stored):
            # Without this the file stays in this process's memory beside the copies: twice the size of all rows.
            release(self._stored)
            self._read = 0
        return rows


def _rows_at_once(stored: np.ndarray) -> int:
    """Return how many rows may be read before their memory is released."""
    return max(1, _MOST_MAPPED // max(_NEIGHBOURS, stored.itemsize * int(np.prod(stored.shape[1:]))))


def release(stored: np.ndarray) -> None:
    """Give back the memory of a mapped file's pages.

    They are read again when they are needed.
    """
    mapped = getattr(stored, "_mmap", None)
    # Windows has no such call.
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


class ContentStore:
    """A folder of rows of one shape and type, shared by processes."""

    def __init__(self, folder: Path, row_shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        make_folder(folder, mode=0o700)
        self.folder = folder
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._places: dict[bytes, int] = {}
        self._checksums: list[int] = []
        self.refresh()

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self._row_shape)) * self._dtype.itemsize

    def refresh(self) -> None:
        """Read the records that other processes have added."""
        file = self.folder / "index.bin"
        known = len(self)
        size = file.stat().st_size if file.is_file() else 0
        num_rows = (self.folder / "rows.bin").stat().st_size // self._row_bytes if size else 0
        # After a power failure either file can be shorter than the other.
        new = min(size // _RECORD.itemsize, num_rows) - known
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
        """Add the rows whose digests the store lacks.

        Digests have 32 bytes; rows are (k, *row_shape), of the store's type.
        """
        from filelock import FileLock

        with FileLock(self.folder / "append.lock"):
            self.refresh()
            fresh = [index for index, digest in enumerate(digests) if digest not in self._places]
            if not fresh:
                return
            block = np.ascontiguousarray(rows[fresh], dtype=self._dtype)
            records = np.empty(len(fresh), dtype=_RECORD)
            for row, index in enumerate(fresh):
                records[row] = (np.void(digests[index]), zlib.crc32(block[row].tobytes()))
            # This also cuts off what a killed process wrote after the last complete record.
            # The rows come first: a record must never name a row that is not there.
            _write(self.folder / "rows.bin", len(self) * self._row_bytes, block.tobytes())
            _write(self.folder / "index.bin", len(self) * _RECORD.itemsize, records.tobytes())
            self.refresh()

    def rows_of(self, digests: np.ndarray) -> StoredRows:
        """Return the rows of (n, 32) uint8 digests, damaged ones as missing."""
        places = np.array([self._places.get(digest.tobytes(), -1) for digest in digests], dtype=np.int64)
        stored = self._mapped()
        wanted, step = np.unique(places[places >= 0]), _rows_at_once(stored)
        damaged = []
        for start in range(0, len(wanted), step):
            checked = wanted[start : start + step]
            damaged += [row for row in checked if zlib.crc32(stored[row].tobytes()) != self._checksums[row]]
            release(stored)
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
        """Replace the digests of damaged rows by random ones."""
        from filelock import FileLock

        with FileLock(self.folder / "append.lock"), (self.folder / "index.bin").open("r+b") as stream:
            for row in damaged:
                stream.seek(int(row) * _RECORD.itemsize)
                stream.write(os.urandom(32))
        forgotten = set(map(int, damaged))
        self._places = {digest: row for digest, row in self._places.items() if row not in forgotten}


def _write(file: Path, start: int, content: bytes) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as stream:
        stream.truncate(start)
        stream.seek(start)
        stream.write(content)
