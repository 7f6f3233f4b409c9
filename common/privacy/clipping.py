"""Clip each example's gradient by its joint norm; never trust a non-finite number."""

import numpy as np

from common.errors import ConfigError


def clip_factors(norms: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """What to multiply each example's gradient by so that its norm is at most the bound.

    Guarantee: factor x norm <= `max_grad_norm`; a zero gradient keeps factor 1; a
    norm that is not finite gets factor 0 (its values must then be replaced by
    zeros before they are multiplied).

    Args:
        norms: (n,) L2 norms over all tensors jointly.
        max_grad_norm: Bound, finite and positive.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ConfigError: The bound is not finite and positive.

    Source: Abadi et al. 2016, arXiv:1607.00133.

    >>> clip_factors(np.array([0.0, 1.0, 4.0, np.nan, np.inf]), max_grad_norm=2.0).tolist()
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if not (np.isfinite(max_grad_norm) and max_grad_norm > 0):
        raise ConfigError(f"max_grad_norm must be finite and positive, got {max_grad_norm}")
    wide = np.asarray(norms, dtype=np.float64)
    finite = np.isfinite(wide)
    safe = np.where(finite & (wide > 0), wide, 1.0)
    factors = np.minimum(1.0, max_grad_norm / safe)
    return np.where(finite, np.where(wide > 0, factors, 1.0), 0.0)


def clipped_head_sum(features: np.ndarray, residuals: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Sum of clipped per-example gradients of a linear head, without forming them.

    One example's gradient is the outer product of its residual and its features,
    so its norm is the product of the two norms and the clipped sum is one matrix
    product.

    Args:
        features: (n, d) float; may hold non-finite values, whose examples count as zero.
        residuals: (n, classes) float, see `common.models.head.residuals`.
        max_grad_norm: Bound on each example's gradient.

    Returns:
        (classes, d) float64; adding or removing one example moves it by at most
        `max_grad_norm` in L2 norm. Zeros for n = 0.

    Raises:
        ConfigError: The bound is not finite and positive.

    Source: Goodfellow 2015, arXiv:1510.01799 (norms of outer products).
    """
    wide_features = features.astype(np.float64)
    wide_residuals = residuals.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(wide_features, axis=1) * np.linalg.norm(wide_residuals, axis=1)
    factors = clip_factors(norms, max_grad_norm=max_grad_norm)
    bad = ~np.isfinite(norms)
    if bad.any():
        wide_features = np.where(bad[:, None], 0.0, wide_features)
        wide_residuals = np.where(bad[:, None], 0.0, wide_residuals)
    return np.asarray((wide_residuals * factors[:, None]).T @ wide_features)


def clipped_sum(gradients: np.ndarray, *, max_grad_norm: float) -> np.ndarray:
    """Sum of clipped per-example gradients that are held in memory.

    Args:
        gradients: (n, p) float, one example a row, all tensors side by side.
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
