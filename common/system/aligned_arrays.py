"""Memory whose rows begin on cache lines: a product is rounded by where its operands lie."""

import numpy as np

_LINE = 64  # bytes


def aligned(rows: int, columns: int, dtype: type[np.floating]) -> np.ndarray:
    """(rows, columns) of zeros, every row of which begins on a cache line.

    So each row of a product is rounded alike, whatever rows came before it.
    """
    width = -(-columns * np.dtype(dtype).itemsize // _LINE) * _LINE
    raw = np.zeros(rows * width + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    whole = raw[start : start + rows * width].view(dtype).reshape(rows, width // np.dtype(dtype).itemsize)
    return whole[:, :columns]


def align_rows(rows: np.ndarray) -> np.ndarray:
    """A copy of (n, d) float32 rows in such memory."""
    out = aligned(len(rows), rows.shape[1], np.float32)
    out[...] = rows
    return out


def is_aligned(array: np.ndarray) -> bool:
    """Whether every row of an array begins on a cache line."""
    return array.ctypes.data % _LINE == 0 and array.strides[0] % _LINE == 0
