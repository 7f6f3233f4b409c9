"""Clip each unit's gradient by its joint norm; never trust a non-finite number."""

import numpy as np

from common.errors import ConfigError

LEAST_BOUND = 1e-6  # below, a factor may round up by so much that the guarantee is gone
_BLOCK = 64  # rows that stay in a core's cache while they are widened and summed


def clip_factors(norms: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """What to multiply each unit's gradient by so that its norm is at most the bound.

    Guarantee: factor x norm <= `max_grad_norm`; a zero gradient keeps factor 1; a
    norm that is not finite gets factor 0 (its values must then be replaced by
    zeros before they are multiplied).

    Args:
        norms: (n,) L2 norms over all tensors jointly.
        max_grad_norm: Bound, finite and at least `LEAST_BOUND`.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ConfigError: The bound is not finite, or too small.

    Source: Abadi et al. 2016, arXiv:1607.00133.

    >>> clip_factors(np.array([0.0, 1.0, 4.0, np.nan, np.inf]), max_grad_norm=2.0).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if not (np.isfinite(max_grad_norm) and max_grad_norm >= LEAST_BOUND):
        raise ConfigError(f"max_grad_norm must be finite and at least {LEAST_BOUND}, got {max_grad_norm}")
    wide = np.asarray(norms, dtype=np.float64)
    finite = np.isfinite(wide)
    safe = np.where(finite & (wide > 0), wide, 1.0)
    factors = np.minimum(1.0, max_grad_norm / safe)
    return np.where(finite, np.where(wide > 0, factors, 1.0), 0.0)


def clipped_head_sum(
    features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float, feature_norms: np.ndarray | None = None
) -> np.ndarray:
    """Sum of clipped per-example gradients of a linear head, without forming them.

    One example's gradient is the outer product of its residual and its features,
    so its norm is the product of the two norms and the clipped sum is one matrix
    product.

    Args:
        features: (n, d) float; may hold non-finite values, whose examples count as zero.
        residuals: (n, classes) float, see `common.models.linear_head.residuals`.
        max_grad_norm: Bound on each example's gradient.
        feature_norms: (n,) float64, L2 norms of the features, if they are known.

    Returns:
        (classes, d) float64; adding or removing one example moves it by at most
        `max_grad_norm` in L2 norm. Zeros for n = 0.

    Raises:
        ConfigError: The bound is not finite and positive.

    Source: Goodfellow 2015, arXiv:1510.01799 (norms of outer products).
    """
    wide = residuals.astype(np.float64)
    lengths = row_norms(features) if feature_norms is None else feature_norms
    with np.errstate(over="ignore", invalid="ignore"):
        norms = lengths * row_norms(wide)
    bad = ~np.isfinite(norms)
    wide[bad] = 0.0
    wide *= clip_factors(norms, max_grad_norm=max_grad_norm)[:, None]
    total = np.zeros((residuals.shape[1], features.shape[1]))
    part, block = np.empty_like(total), np.empty((min(_BLOCK, len(features)), features.shape[1]))
    any_bad = bool(bad.any())
    for at in range(0, len(features), _BLOCK):
        rows = block[: len(features) - at]
        np.copyto(rows, features[at : at + _BLOCK])
        if any_bad:
            rows[bad[at : at + _BLOCK]] = 0.0
        total += np.matmul(wide[at : at + _BLOCK].T, rows, out=part)
    return total


def row_norms(rows: np.ndarray) -> np.ndarray:
    """(n,) float64 L2 norms of (n, d) rows, accumulated in float64; not finite where a row is not."""
    norms = np.empty(len(rows))
    block = np.empty((min(_BLOCK, len(rows)), rows.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, len(rows), _BLOCK):
            wide = block[: len(rows) - at]
            np.copyto(wide, rows[at : at + _BLOCK])
            np.einsum("nd,nd->n", wide, wide, out=norms[at : at + _BLOCK])
    return np.sqrt(norms)


def clipped_head_group_sum(
    features: np.ndarray, residuals: np.ndarray, groups: np.ndarray, *, max_grad_norm: float
) -> np.ndarray:
    """The same where several examples are one unit: their mean gradient is clipped as one.

    Args:
        features: (n, d) float.
        residuals: (n, classes) float.
        groups: (n,) int64, equal for examples of one unit.
        max_grad_norm: Bound on each unit's gradient.

    Returns:
        (classes, d) float64; adding or removing one unit moves it by at most
        `max_grad_norm` in L2 norm. Zeros for n = 0.

    Raises:
        ConfigError: The bound is not finite and positive.
    """
    total = np.zeros((residuals.shape[1], features.shape[1]))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)  # copies: no unit's rounding may depend on its neighbours
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = residuals[rows].astype(np.float64).T @ features[rows].astype(np.float64) / len(rows)
        total += clipped_sum(gradient.reshape(1, -1), max_grad_norm=max_grad_norm).reshape(total.shape)
    return total


def clipped_sum(gradients: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Sum of clipped per-unit gradients that are held in memory.

    Args:
        gradients: (n, p) float, one unit a row, all tensors side by side.
        max_grad_norm: Bound on each row's L2 norm.

    Returns:
        (p,) float64; zeros for n = 0.

    Raises:
        ConfigError: The bound is not finite and positive.
    """
    wide = gradients.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(wide, axis=1)
    factors = clip_factors(norms, max_grad_norm=max_grad_norm)
    wide = np.where(np.isfinite(norms)[:, None], wide, 0.0)
    return np.asarray(factors @ wide)
