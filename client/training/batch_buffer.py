"""Memory for batches of features, used again for every batch.

New memory for each batch costs more time than the training step of a linear head.
"""

from functools import cached_property

import numpy as np

from common.system.aligned_arrays import aligned, is_aligned


class BatchBuffer:
    """Aligned memory for batches of a client's features.

    Features are (n, d) float32. Each batch overwrites the one before it.
    """

    def __init__(self, features: np.ndarray, largest: int) -> None:
        self._features, self._largest = features, largest

    # Not before a batch needs it. Where all rows are in every batch, it would be a second copy of them.
    @cached_property
    def _buffer(self) -> np.ndarray:
        return aligned(min(self._largest, len(self._features)), self._features.shape[1], np.float32)

    def fetch(self, rows: np.ndarray) -> np.ndarray:
        """Return the features (b, d) of increasing row numbers."""
        # All rows in increasing order are the array itself. Another order would need a copy.
        if len(rows) == len(self._features) and is_aligned(self._features):
            return self._features
        batch = self._buffer[: len(rows)]
        if batch.flags.c_contiguous:
            np.take(self._features, rows, axis=0, out=batch, mode="clip")
        else:
            batch[...] = self._features[rows]
        return batch
