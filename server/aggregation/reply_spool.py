"""Tensors of a round's replies, beyond a bound of memory in a file."""

import errno
import logging
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.app import Array, ArrayRecord

from common.messages.held_array import HeldArray, values_of

_log = logging.getLogger("bract.server")
# Bytes of a round's replies that stay in memory. What a round computes does not depend on it.
IN_MEMORY_BYTES = 1 << 30
# Bytes that stay free on the disk, on which the run writes its checkpoints, too.
_LEFT_FREE = 1 << 30
_CIPHER_BLOCK = 16


class SpooledArray(Array):
    """Array for messages whose values lie in a file.

    They are read each time that they are asked for. Whoever reads one reply after the other has one of them in memory.
    """

    def __init__(self, part: "_Part", offset: int, values: np.ndarray) -> None:
        self.__dict__.update(_part=part, _offset=offset, _type=values.dtype, _bytes=values.nbytes)
        self.__dict__.update(dtype=str(values.dtype), shape=tuple(values.shape), stype="numpy.ndarray")

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Bytes of the array as NumPy writes them."""
        return Array(self.numpy()).data

    def numpy(self) -> np.ndarray:
        """Return the values, read anew.

        Raises:
            OSError: The spool was emptied since.
        """
        state: dict[str, Any] = self.__dict__
        # Some of Flower's strategies write to it, so it must not be read-only.
        part: _Part = state["_part"]
        values: np.ndarray = part.read(state["_offset"], state["_bytes"]).view(state["_type"])
        return values.reshape(self.shape)

    def deflate(self) -> bytes:
        """Return the bytes of Flower's own array.

        They name its class, and a receiver knows no other.
        """
        return Array(self.numpy()).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to unpickle Flower's own array."""
        # Never the key and the file's number, which another process could do nothing good with.
        return Array, (self.dtype, self.shape, self.stype, self.data)


class ReplySpool:
    """Keeper of the tensors of one round's replies at a time.

    Guarantee: what is read is to the bit what was kept. No more than `in_memory` bytes of tensors stay in memory while
    there is room on the disk. The file has no name, and its bytes are encrypted under a key that is never stored, so a
    process that is killed leaves nothing that can be read. On the disk `_LEFT_FREE` bytes stay free.

    Only one thread at a time may keep records.

    Args:
        folder: Folder on whose disk the file lies; None for the system's place for temporary files.
        in_memory: Bytes of tensors that stay in memory.
    """

    def __init__(self, folder: Path | None = None, in_memory: int | None = None) -> None:
        self._folder, self._in_memory = folder, IN_MEMORY_BYTES if in_memory is None else in_memory
        self._file: _File | None = None
        self._part: _Part | None = None
        self._room, self._disk_is_full = self._in_memory, False

    def empty(self) -> None:
        """Drop all records that were kept.

        The file stays, because to write again over its bytes is ten times as fast as to make it grow.
        """
        if self._part is not None:
            self._part.is_dropped = True
        if self._file is not None and self._disk_is_full:
            # The disk may have become full since the file grew, and others need the room.
            os.ftruncate(self._file.fileno, 0)
        self._part, self._room, self._disk_is_full = None, self._in_memory, False

    def keep(self, record: ArrayRecord) -> ArrayRecord:
        """Return a record of the same names and values.

        Its values may lie in the file.
        """
        values = {name: values_of(array) for name, array in record.items()}
        size = sum(array.nbytes for array in values.values())
        kept = ArrayRecord()
        if self._disk_is_full or size <= self._room:
            self._room -= size
            for name, array in values.items():
                # Decoded here once, where a reply came as bytes.
                kept[name] = HeldArray(array)
            return kept
        try:
            part = self._open_part()
            part.refuse_without_room(size)
            for name, array in values.items():
                kept[name] = SpooledArray(part, part.write(array), array)
        except OSError as error:
            # The round may still fit into memory, and without a file it could only be given up.
            _log.warning("replies stay in memory, the disk does not take them (%s)", error.strerror or error)
            self._disk_is_full = True
            return self.keep(record)
        return kept

    def _open_part(self) -> "_Part":
        if self._file is None:
            self._file = _File(self._folder)
        if self._part is None:
            self._part = _Part(self._file)
        return self._part


class _File:
    """File without a name that is closed when nobody refers to it."""

    def __init__(self, folder: Path | None) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self.fileno = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fileno)


class _Part:
    """Content of the file during one round, encrypted."""

    def __init__(self, file: _File) -> None:
        self._file = file
        # Updates may be exact, and blocks of a removed file stay on a disk. A fresh key a round, because each round
        # writes at the same places.
        self._key = algorithms.AES(os.urandom(32))
        self._end = 0
        self.is_dropped = False

    def refuse_without_room(self, size: int) -> None:
        """Refuse to write where the disk would become nearly full.

        Raises:
            OSError: It would.
        """
        disk, length = os.fstatvfs(self._file.fileno), os.fstat(self._file.fileno).st_size
        # The parts of a former round's file are written over, so they need no more room.
        if disk.f_bavail * disk.f_frsize - max(0, self._end + size - length) < _LEFT_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, values: np.ndarray) -> int:
        """Append values and return where they begin."""
        offset = self._end
        rest = self._crypt(np.asarray(values, order="C").reshape(-1).view(np.uint8).data, offset).data
        while rest:
            written = os.pwrite(self._file.fileno, rest, self._end)
            self._end, rest = self._end + written, rest[written:]
        self._end += -self._end % _CIPHER_BLOCK
        return offset

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return bytes that were written, (size,) uint8."""
        if self.is_dropped:
            raise OSError("the replies of an earlier round were dropped")
        parts: list[bytes] = []
        while size > (done := sum(map(len, parts))):
            parts.append(os.pread(self._file.fileno, size - done, offset + done))
            if not parts[-1]:
                raise OSError("the file of a round's replies was cut off")
        return self._crypt(b"".join(parts), offset)

    def _crypt(self, data: bytes | memoryview, offset: int) -> np.ndarray:
        # The counter is the place in the file, which is written once a key. So no part of its stream is used twice.
        counter = (offset // _CIPHER_BLOCK).to_bytes(_CIPHER_BLOCK, "big")
        # The library wants room for a block more than there is.
        out = np.empty(len(data) + _CIPHER_BLOCK, dtype=np.uint8)
        return out[: Cipher(self._key, modes.CTR(counter)).encryptor().update_into(data, out.data)]
