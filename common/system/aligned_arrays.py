"""Arrays whose rows start on 64-byte boundaries.

BLAS may round differently for other alignments, so this keeps a row's result independent of its neighbours.
"""

import numpy as np

# Bytes of a cache line.
_LINE = 64


def aligned(rows: int, columns: int, dtype: type[np.floating]) -> np.ndarray:
    """Return zeros of shape (rows, columns) with aligned rows."""
    width = -(-columns * np.dtype(dtype).itemsize // _LINE) * _LINE
    # Reserve one line more, because NumPy does not align its memory to cache lines.
    raw = np.zeros(rows * width + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    padded = raw[start : start + rows * width].view(dtype).reshape(rows, width // np.dtype(dtype).itemsize)
    return padded[:, :columns]


def align_rows(rows: np.ndarray) -> np.ndarray:
    """Return a copy of (n, d) float32 rows with aligned rows."""
    out = aligned(len(rows), rows.shape[1], np.float32)
    out[...] = rows
    return out


def is_aligned(array: np.ndarray) -> bool:
    """Return True if every row of an array is aligned."""
    return array.ctypes.data % _LINE == 0 and array.strides[0] % _LINE == 0
