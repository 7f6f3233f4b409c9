"""Flower's arrays over values in memory, encoded when somebody asks for bytes."""

from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0

_NUMPY = "numpy.ndarray"
_FIXED = frozenset({"dtype", "shape", "stype", "data", "values"})


class HeldArray(Array):
    """An array for messages whose values are held, not yet encoded.

    It behaves like Flower's `Array` and has the same bytes. In one process nobody asks for them, and a large model is
    neither encoded nor decoded for each client.

    Args:
        values: The values. Whoever passes them must not change them any more.
    """

    def __init__(self, values: np.ndarray) -> None:
        # `np.ascontiguousarray` would make an array of one value of a scalar.
        held = np.asarray(values, order="C").view()
        # All receivers of a message share it: one that trained in place would change what the others get.
        held.flags.writeable = False
        self.__dict__.update(_values=held, dtype=str(held.dtype), shape=tuple(held.shape), stype=_NUMPY)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse another type, shape or content, with which the values would disagree."""
        if name in _FIXED:
            raise AttributeError(f"{name} of a held array cannot be set: make a new one")
        super().__setattr__(name, value)

    # Flower's equality asks for the same class.
    def __eq__(self, other: object) -> bool:
        """Return whether it is an array of the same type, shape and bytes."""
        if not isinstance(other, Array):
            return NotImplemented
        described = (self.dtype, self.shape, self.stype) == (other.dtype, other.shape, other.stype)
        return described and self.data == other.data

    # Flower's arrays have none either.
    __hash__ = None  # type: ignore[assignment]

    # A field in the parent class; the bytes are made once, when they are asked for first.
    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Bytes of the array as NumPy writes them."""
        if "_data" not in self.__dict__:
            self.__dict__["_data"] = Array(self.values).data
        return cast(bytes, self.__dict__["_data"])

    @property
    def values(self) -> np.ndarray:
        """The values themselves, read-only."""
        return cast(np.ndarray, self.__dict__["_values"])

    def numpy(self) -> np.ndarray:
        """Return a copy of the values."""
        # Some of Flower's strategies write to it.
        return self.values.copy()

    @property
    def num_bytes(self) -> int:
        """Length of `data`, found without making it."""
        values = self.values
        return _header_bytes(values.dtype, values.shape) + values.nbytes

    def deflate(self) -> bytes:
        """Return the bytes of Flower's own array.

        They name its class, and a receiver knows no other.
        """
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to unpickle Flower's own array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


@lru_cache(maxsize=1024)
def _header_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    stream = BytesIO()
    write_array_header_1_0(stream, header_data_from_array_1_0(np.broadcast_to(np.zeros((), dtype), shape)))
    return len(stream.getvalue())


def values_of(array: Array) -> np.ndarray:
    """Return the values of an array in a message.

    They are not copied where they are held, and then they are read-only.
    """
    return array.values if isinstance(array, HeldArray) else array.numpy()


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of all records of a message's content."""
    return sum(_record_bytes(record) for record in content.values())


def _record_bytes(record: Any) -> int:
    if not isinstance(record, ArrayRecord):
        return cast(int, record.count_bytes())
    sizes = (array.num_bytes if isinstance(array, HeldArray) else len(array.data) for array in record.values())
    return sum(map(len, record)) + sum(sizes)


def array_records_in(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records of tensors in a message's content, by name."""
    # Flower's own property refers to itself, and keeps a reply's tensors in memory until the garbage collector runs.
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
