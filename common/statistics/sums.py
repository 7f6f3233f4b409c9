"""Sums over a client's features from which a linear head follows in one round.

Under DP all sums of a client are one vector, the contribution, in which one image of unit length has norm 1. The upper
triangle stands for the whole symmetric matrix, so each value off the diagonal counts twice in a squared norm. In the
contribution it is multiplied by the root of 2 instead.
"""

import math
from typing import Literal

import numpy as np

from common.arrays import Arrays, from_vector
from common.privacy.clipping import clip_factors

StatisticsKind = Literal["second-moments", "class-means"]
SECOND_MOMENT, CLASS_SUMS, CLASS_COUNTS = "second-moment", "class-sums", "class-counts"
# Weight of each tensor in the contribution. The counts' weight is low, because their noise hardly moves a mean.
_WEIGHTS: dict[StatisticsKind, dict[str, float]] = {
    "second-moments": {SECOND_MOMENT: 1.0, CLASS_SUMS: 1.0},
    "class-means": {CLASS_SUMS: 1.0, CLASS_COUNTS: 0.25},
}
# So many rows are converted to float64 at once.
_BLOCK = 512


def statistic_shapes(kind: StatisticsKind, num_classes: int, num_features: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that a client sends, in order."""
    shapes = {
        SECOND_MOMENT: (num_features * (num_features + 1) // 2,),
        CLASS_SUMS: (num_classes, num_features),
        CLASS_COUNTS: (num_classes,),
    }
    return {name: shapes[name] for name in _WEIGHTS[kind]}


def scale_of(kind: StatisticsKind) -> float:
    """Return the joint norm of one image's tensors before they are scaled.

    >>> round(scale_of("second-moments"), 4)
    1.4142
    """
    return math.sqrt(sum(weight**2 for weight in _WEIGHTS[kind].values()))


def weight_of(kind: StatisticsKind, name: str) -> float:
    """Return a tensor's factor in the contribution, apart from the root of 2."""
    return _WEIGHTS[kind][name] / scale_of(kind)


def statistics_of(
    kind: StatisticsKind,
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    factors: np.ndarray | None = None,
) -> Arrays:
    """Sum a client's features as `kind` asks.

    Args:
        kind: What is summed.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        num_classes: Number of classes.
        factors: (n,) float64 from 0 to 1, by which each image counts; all in full if left out.

    Returns:
        `second-moment`, the upper triangle of the sum of x x^T by rows, `class-sums`, (classes, d), the sum of each
        class's features, and `class-counts`, (classes,); all float64, those of `kind` only.
    """
    size = features.shape[1]
    moment, sums, counts = np.zeros((size, size)), np.zeros((num_classes, size)), np.zeros(num_classes)
    for start in range(0, len(labels), _BLOCK):
        rows, of_rows = features[start : start + _BLOCK].astype(np.float64), labels[start : start + _BLOCK]
        weights = np.ones(len(rows)) if factors is None else factors[start : start + _BLOCK]
        # 0 x NaN is NaN and would spoil the whole sum, so what counts for nothing becomes zero.
        rows[weights == 0] = 0.0
        chosen = np.zeros((num_classes, len(rows)))
        chosen[of_rows, np.arange(len(rows))] = weights
        sums += chosen @ rows
        counts += chosen.sum(axis=1)
        if kind == "second-moments":
            # Both sides by the root, so that the product is exactly symmetric.
            rows *= np.sqrt(weights)[:, None]
            moment += rows.T @ rows
    found = {SECOND_MOMENT: moment[np.triu_indices(size)], CLASS_SUMS: sums, CLASS_COUNTS: counts}
    return {name: found[name] for name in _WEIGHTS[kind]}


def symmetric_of(triangle: np.ndarray, size: int) -> np.ndarray:
    """Return the (size, size) symmetric matrix of an upper triangle by rows.

    >>> symmetric_of(np.array([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return np.triu(matrix) + np.triu(matrix, 1).T


def to_contribution(kind: StatisticsKind, sums: Arrays) -> np.ndarray:
    """Return the tensors of a client as one vector, shape (p,), float64.

    Guarantee: the L2 distance of two results is that of the whole matrices and class sums, each times its weight.
    """
    return np.concatenate([(sums[name] * _factor(kind, name, sums)).ravel() for name in _WEIGHTS[kind]])


def from_contribution(kind: StatisticsKind, vector: np.ndarray, num_classes: int, num_features: int) -> Arrays:
    """Return the tensors whose contribution is a vector, float64."""
    sums = from_vector(vector, statistic_shapes(kind, num_classes, num_features))
    return {name: values / _factor(kind, name, sums) for name, values in sums.items()}


def _factor(kind: StatisticsKind, name: str, sums: Arrays) -> np.ndarray:
    """Return the factors of a tensor's values, one number if all are equal."""
    weight = weight_of(kind, name)
    if name != SECOND_MOMENT:
        return np.full(1, weight)
    # From the tensor's own size, (d, d + 1) / 2. The diagonal is where the rows of the triangle begin.
    size = (math.isqrt(8 * sums[name].size + 1) - 1) // 2
    factors = np.full(sums[name].size, weight * math.sqrt(2))
    factors[np.cumsum([0, *range(size, 1, -1)])] = weight
    return factors


def unit_factors(
    kind: StatisticsKind, features: np.ndarray, labels: np.ndarray, units: np.ndarray, *, bound: float
) -> np.ndarray:
    """Return the factor of each image that clips its unit's joint contribution.

    Guarantee: the contributions of one unit's images, added up and each times its factor, have an L2 norm of at most
    `bound` over all tensors together. All images of a unit have the same factor. It is 0 for a unit with a value that
    is not finite.

    Args:
        kind: What is summed.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        units: (n,) int64, equal for images of one unit.
        bound: Clip bound of one unit.

    Returns:
        (n,) float64 from 0 to 1.

    Raises:
        ConfigError: The bound is not finite, or below `MIN_BOUND`.
    """
    _, unit_of, sizes = np.unique(units, return_inverse=True, return_counts=True)
    norms = np.zeros(len(sizes))
    # A warning about a non-finite image would tell that it is there.
    with np.errstate(all="ignore"):
        alone = np.flatnonzero(sizes[unit_of] == 1)
        for start in range(0, len(alone), _BLOCK):
            rows = alone[start : start + _BLOCK]
            wide = features[rows].astype(np.float64)
            norms[unit_of[rows]] = _norm(kind, np.einsum("nd,nd->n", wide, wide)[:, None, None])
        order = np.argsort(unit_of, kind="stable")
        ends = np.cumsum(sizes)
        for unit in np.flatnonzero(sizes > 1):
            rows = order[ends[unit] - sizes[unit] : ends[unit]]
            # The inner products of more images than features would take more memory than the sums themselves.
            if len(rows) > features.shape[1]:
                summed = statistics_of(kind, features[rows], labels[rows], int(labels.max()) + 1)
                norms[unit] = np.linalg.norm(to_contribution(kind, summed))
            else:
                wide = features[rows].astype(np.float64)
                norms[unit] = _norm(kind, (wide @ wide.T)[None], labels[rows])[0]
    return clip_factors(norms, max_grad_norm=bound)[unit_of]


def _norm(kind: StatisticsKind, products: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the norms of units' contributions, (b,).

    `products` are the inner products of the images of each unit, (b, m, m). The squared norm of a sum of x x^T is the
    sum of all squared inner products. That of the class sums is the sum of the inner products within each class.
    """
    same = np.ones(products.shape[1:]) if labels is None else (labels[:, None] == labels).astype(np.float64)
    squared = {
        SECOND_MOMENT: np.square(products).sum(axis=(1, 2)),
        CLASS_SUMS: np.maximum(np.where(same, products, 0.0).sum(axis=(1, 2)), 0.0),
        CLASS_COUNTS: np.full(len(products), same.sum()),
    }
    # Only what leaves counts: a weight of 0 would turn an infinite norm into NaN.
    total = sum((weight_of(kind, name) ** 2 * squared[name] for name in _WEIGHTS[kind]), np.zeros(len(products)))
    return np.asarray(np.sqrt(total))
