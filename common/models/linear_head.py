"""A linear classifier on the features of a frozen backbone: NumPy only.

There is no bias term: features are centred for each image, and without a bias
one clipped gradient spends its whole norm on the directions that tell classes
apart.
"""

import numpy as np

from common.arrays import Arrays

HEAD_WEIGHT = "head.weight"


def initial_head(num_features: int, num_classes: int) -> Arrays:
    """A head of zeros: every class equally likely.

    Returns:
        `{"head.weight": (num_classes, num_features) float32}`.
    """
    return {HEAD_WEIGHT: np.zeros((num_classes, num_features), dtype=np.float32)}


def head_logits(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Scores of each class, (n, classes), from (n, d) features and (classes, d) weights."""
    return np.asarray(features @ weight.T)


def head_logits_row_by_row(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same scores, each row rounded as if it were alone.

    One matrix product rounds a row differently with different neighbours, and
    hostile weights can blow that up into another row's gradient: under DP one
    image would then move more than its own.
    """
    return np.asarray(np.matmul(features[:, None, :], weight.T)[:, 0])


def residuals(
    features: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    *,
    row_by_row: bool = False,
    label_smoothing: float = 0.0,
) -> np.ndarray:
    """Softmax probabilities minus one-hot labels: the gradient by the logits.

    Args:
        features: (n, d) float32.
        labels: (n,) int64.
        weight: (classes, d) float32.
        label_smoothing: Share of each label spread over all classes, in [0, 1).
        row_by_row: Let no row depend on another one, not even by rounding: what DP needs.

    Returns:
        (n, classes) float32. One example's gradient by the weight is the outer
        product of its residual and its features.
    """
    logits = (head_logits_row_by_row if row_by_row else head_logits)(features, weight)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    logits[np.arange(len(labels)), labels] -= 1 - label_smoothing
    if label_smoothing:
        logits -= np.float32(label_smoothing / weight.shape[0])
    return logits
