"""A linear classifier on the features of a frozen backbone, in NumPy alone.

There is no bias term. Features are centred for each image, and without a bias a clipped gradient spends its whole norm
on the directions that separate the classes.
"""

import numpy as np

from common.arrays import Arrays

HEAD_WEIGHT = "head.weight"


def initial_head(num_features: int, num_classes: int) -> Arrays:
    """Return a (num_classes, num_features) head of zeros, under which classes are equally likely."""
    return {HEAD_WEIGHT: np.zeros((num_classes, num_features), dtype=np.float32)}


def head_logits(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return scores (n, classes) of (n, d) features under (classes, d) weights."""
    return np.asarray(features @ weight.T)


def head_logits_row_by_row(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the scores of `head_logits`, each row independent of all others.

    One matrix product over all rows rounds a row differently with different neighbours. A hostile server can choose
    weights that amplify this difference beyond the clip bound. Under DP one image would then change more than its own
    gradient.
    """
    # A stack of products of one row each. Features @ weight.T would be faster, but it couples the rows.
    return np.asarray(np.matmul(features[:, None, :], weight.T)[:, 0])


def residuals(
    features: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    *,
    row_by_row: bool = False,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] = (),
) -> np.ndarray:
    """Return softmax probabilities minus one-hot labels, the gradient by the logits.

    The result is (n, classes) float32. One example's gradient by the weight is the outer product of its residual and
    its features. `class_weights` multiplies each row by the weight of its label. Under `row_by_row` no row depends on
    another one, not even by rounding: DP needs it.
    """
    logits = (head_logits_row_by_row if row_by_row else head_logits)(features, weight)
    # Row by row too: max and sum along axis 1 see one row only. The maximum keeps exp finite.
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    logits[np.arange(len(labels)), labels] -= 1 - label_smoothing
    if label_smoothing:
        logits -= np.float32(label_smoothing / weight.shape[0])
    if class_weights:
        logits *= np.asarray(class_weights, dtype=np.float32)[labels, None]
    return logits
