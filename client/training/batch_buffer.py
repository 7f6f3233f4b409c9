"""Rows of features, fetched batch by batch into memory that is used again: fetching costs less than training."""

import numpy as np

from common.system.aligned_arrays import aligned, is_aligned


class FeatureRows:
    """A client's features, and batches of them in aligned memory.

    A batch that was fetched is overwritten by the next one.

    Args:
        features: (n, d) float32.
        largest: The most rows of a batch.
    """

    def __init__(self, features: np.ndarray, largest: int) -> None:
        self._all = features
        self._some = aligned(min(largest, len(features)), features.shape[1], np.float32)

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """(b, d) float32 of the rows with these numbers, which must increase."""
        if len(rows) == len(self._all) and is_aligned(self._all):
            return self._all
        out = self._some[: len(rows)]
        if out.flags.c_contiguous:
            np.take(self._all, rows, axis=0, out=out, mode="clip")
        else:
            out[...] = self._all[rows]
        return out
