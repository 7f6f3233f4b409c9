"""Clipping of each unit's gradient by its joint norm.

A gradient that is not finite counts as zero.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from common.errors import ConfigError

# Below this bound, rounding could increase a factor by so much that the guarantee fails.
MIN_BOUND = 1e-6
# So many rows stay in a core's cache while they are converted to float64 and summed.
_BLOCK = 64
# So many float64 values stay in a core's cache.
_VALUES = 1 << 14


def clip_factors(norms: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Return the factor that scales each unit's gradient to the bound.

    Guarantee: factor x norm <= `max_grad_norm`, for (n,) L2 norms over all tensors jointly. The factors are (n,)
    float64 in [0, 1]. A zero gradient keeps factor 1. A norm that is not finite gets factor 0, and the caller must
    replace the gradient's values by zeros before multiplying, because 0 x NaN is NaN.

    Raises:
        ConfigError: The bound is not finite, or too small.

    Source: Abadi et al. 2016, arXiv:1607.00133.

    >>> clip_factors(np.array([0.0, 1.0, 4.0, np.nan, np.inf]), max_grad_norm=2.0).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if not (np.isfinite(max_grad_norm) and max_grad_norm >= MIN_BOUND):
        raise ConfigError(f"max_grad_norm must be finite and at least {MIN_BOUND}, got {max_grad_norm}")
    wide = np.asarray(norms, dtype=np.float64)
    finite = np.isfinite(wide)
    # Never divide by zero or by a number that is not finite.
    safe = np.where(finite & (wide > 0), wide, 1.0)
    factors = np.minimum(1.0, max_grad_norm / safe)
    return np.where(finite, np.where(wide > 0, factors, 1.0), 0.0)


def clipped_head_sum(
    features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, feature_norms: np.ndarray | None = None
) -> np.ndarray:
    """Sum the clipped per-example gradients of a linear head.

    No gradient is formed. One example's gradient is the outer product of its residual and its features. So its norm is
    the product of the two norms, and the clipped sum is one matrix product.

    Args:
        features: (n, d) float; an example with a non-finite value counts as zero.
        residuals: (n, classes) float, from `common.models.linear_head.residuals`.
        max_grad_norm: Bound on each example's gradient.
        feature_norms: (n,) float64, L2 norms of the features; computed if left out.

    Returns:
        (classes, d) float64; adding or removing one example changes it by at most `max_grad_norm` in L2 norm. Zeros for
        n = 0.

    Raises:
        ConfigError: The bound is not finite, or below `MIN_BOUND`.

    Source: Goodfellow 2015, arXiv:1510.01799 (norms of outer products).
    """
    wide = residuals.astype(np.float64)
    lengths = row_norms(features) if feature_norms is None else feature_norms
    with np.errstate(over="ignore", invalid="ignore"):
        norms = lengths * row_norms(wide)
    # Factor 0 is not enough: 0 x NaN is NaN and would spoil the whole sum. So these values become zeros.
    bad = ~np.isfinite(norms)
    wide[bad] = 0.0
    wide *= clip_factors(norms, max_grad_norm=max_grad_norm)[:, None]
    total = np.zeros((residuals.shape[1], features.shape[1]))
    part, block = np.empty_like(total), np.empty((min(_BLOCK, len(features)), features.shape[1]))
    any_bad = bool(bad.any())
    for start in range(0, len(features), _BLOCK):
        rows = block[: len(features) - start]
        np.copyto(rows, features[start : start + _BLOCK])
        if any_bad:
            rows[bad[start : start + _BLOCK]] = 0.0
        total += np.matmul(wide[start : start + _BLOCK].T, rows, out=part)
    return total


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Return the L2 norms of (n, d) rows, shape (n,), float64.

    The sums are in float64. A norm is not finite if its row is not.
    """
    norms = np.empty(len(rows))
    block = np.empty((min(_BLOCK, len(rows)), rows.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), _BLOCK):
            wide = block[: len(rows) - start]
            np.copyto(wide, rows[start : start + _BLOCK])
            np.einsum("nd,nd->n", wide, wide, out=norms[start : start + _BLOCK])
    return np.sqrt(norms)


def clipped_head_group_sum(
    features: np.ndarray, residuals: np.ndarray, groups: np.ndarray, *, max_grad_norm: float
) -> np.ndarray:
    """Sum the clipped mean gradients of units of several examples.

    Guarantee: adding or removing one unit changes the result, (classes, d) float64, by at most `max_grad_norm` in L2
    norm. It is zeros for n = 0. Arguments are as in `clipped_head_sum`; `groups` is (n,) int64, equal for examples of
    one unit.

    Raises:
        ConfigError: The bound is not finite, or below `MIN_BOUND`.
    """
    total = np.zeros((residuals.shape[1], features.shape[1]))
    for group in np.unique(groups):
        # Indices copy the unit's rows, so that its rounding does not depend on the rows around it.
        rows = np.flatnonzero(groups == group)
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = residuals[rows].astype(np.float64).T @ features[rows].astype(np.float64) / len(rows)
        total += clipped_sum(gradient.reshape(1, -1), max_grad_norm=max_grad_norm).reshape(total.shape)
    return total


def clipped_sum(gradients: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Sum the clipped per-unit gradients in the rows of a matrix.

    Each row of the (n, p) matrix is one unit, with all tensors side by side. The sum is (p,) float64, zeros for n = 0.

    Raises:
        ConfigError: The bound is not finite, or below `MIN_BOUND`.
    """
    total = np.zeros(gradients.shape[1])
    clip_factors(np.zeros(0), max_grad_norm=max_grad_norm)
    for gradient in gradients:
        add_clipped(total, gradient, max_grad_norm=max_grad_norm)
    return total


def add_clipped(
    total: np.ndarray, gradient: np.ndarray | Sequence[np.ndarray], *, max_grad_norm: float, elsewhere: float = 0.0
) -> float:
    """Add one unit's clipped gradient to a sum in place and return its factor.

    The sum is (p,) float64. The gradient is (p,), or arrays of any shapes whose values are its parts in order.
    Arithmetic is in float64. Memory is read in blocks that stay in a core's cache, since copies of a whole gradient
    would take more time than its computation. `elsewhere` is the sum of squares of the unit's values that the
    gradient leaves out. The caller adds them, scaled by the same factor, or not at all if it is 0.

    Raises:
        ConfigError: The bound is not finite, or below `MIN_BOUND`.
        ValueError: Sum and gradient differ in size.
    """
    values = _Joined([gradient] if isinstance(gradient, np.ndarray) else gradient)
    if values.size != total.size:
        raise ValueError(f"a gradient of {values.size} values was to be added to a sum of {total.size}")
    wide = np.empty(min(_VALUES, values.size))
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(_square_sum(values, 0, values.size, wide) + elsewhere)
    factor = float(clip_factors(np.array([norm]), max_grad_norm=max_grad_norm)[0])
    # Factor 0 is not enough: 0 x NaN is NaN and would spoil the whole sum.
    if not np.isfinite(norm):
        return 0.0
    for start in range(0, values.size, _VALUES):
        part = total[start : start + _VALUES]
        scaled = values.read(start, wide[: part.size])
        scaled *= factor
        part += scaled
    return factor


class _Joined:
    """Arrays as one vector, of which blocks are read."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = [part.reshape(-1) for part in parts]
        self._ends = list(accumulate(len(part) for part in self._parts))
        self.size = self._ends[-1] if parts else 0

    def read(self, start: int, block: np.ndarray) -> np.ndarray:
        """Return a block, filled with the values from `start` on."""
        number, filled = bisect_right(self._ends, start), 0
        while filled < len(block):
            part = self._parts[number]
            values = part[start + filled - self._ends[number] + len(part) :][: len(block) - filled]
            block[filled : filled + len(values)] = values
            filled, number = filled + len(values), number + 1
        return block


class OuterProductSum:
    """Running sum of scaled outer products, (m, d) float64.

    A linear layer's gradient by one example is the outer product of its output's gradient, (m,), and its input, (d,).
    None is formed. The sum is one matrix product for each block of examples.

    Source: Goodfellow 2015, arXiv:1510.01799 (norms of outer products).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._total = np.zeros(shape)
        self._left, self._right = np.empty((_BLOCK, shape[0])), np.empty((_BLOCK, shape[1]))
        self._filled = 0

    def add(self, left: np.ndarray, right: np.ndarray, *, factor: float) -> None:
        """Add an outer product times a factor.

        A unit that is not finite has factor 0, and nothing of it stays.
        """
        # Not even as a row of zeros: 0 x NaN is NaN and would spoil the whole sum.
        if factor == 0:
            return
        np.multiply(left, factor, out=self._left[self._filled], dtype=np.float64)
        self._right[self._filled] = right
        self._filled += 1
        if self._filled == _BLOCK:
            self.total()

    def total(self) -> np.ndarray:
        """Return the sum so far."""
        if self._filled:
            self._total += self._left[: self._filled].T @ self._right[: self._filled]
            self._filled = 0
        return self._total


def outer_square(left: np.ndarray, right: np.ndarray) -> float:
    """Return the sum of squares of an outer product's values in float64.

    >>> outer_square(np.array([3.0, 4.0]), np.array([2.0]))
    100.0
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [float(wide @ wide) for wide in (left.astype(np.float64), right.astype(np.float64))]
        return squares[0] * squares[1]


def _square_sum(values: _Joined, start: int, size: int, wide: np.ndarray) -> float:
    """Return the sum of squares of `size` values in float64."""
    if size <= len(wide):
        squares = values.read(start, wide[:size])
        np.multiply(squares, squares, out=squares)
        return float(np.add.reduce(squares))
    # To the bit the sum of a whole array: NumPy adds in pairs, and halves a long array at a multiple of 8. So runs of
    # earlier versions repeat.
    half = size // 2 - size // 2 % 8
    return _square_sum(values, start, half, wide) + _square_sum(values, start + half, size - half, wide)
