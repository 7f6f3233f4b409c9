"""Likelihood-ratio attack of membership inference.

Pure functions of scores and membership bits. An image's score under a model is compared
with two normal distributions: of its scores under other models that had it, and under
others that had not. The attacked model is never among those that were fitted.

Source: Carlini et al. 2022, arXiv:2112.03570 (LiRA, online).
"""

import numpy as np

# An image's own variance is uncertain with few models: it is mixed with the one that all images share, as if that
# had been seen so many times. On the digits this beat either one alone with 16 to 128 models.
_SHARED_WEIGHT = 64


def logit_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a model's confidence in each image's true class, log(p / (1 - p)).

    Computed from logits, so that a probability that rounds to 1 loses nothing.

    Args:
        logits: (n, classes) float; finite, at least two classes.
        labels: (n,) int64, true classes.

    Returns:
        (n,) float64.

    >>> logit_confidence(np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([0, 0])).tolist()
    [0.0, 2.0]
    """
    rows = np.arange(len(labels))
    others = np.asarray(logits, dtype=np.float64).copy()
    true = others[rows, labels]
    others[rows, labels] = -np.inf
    most = others.max(axis=1)
    return np.asarray(true - most - np.log(np.exp(others - most[:, None]).sum(axis=1)))


def likelihood_ratios(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the log likelihood of membership minus that of non-membership.

    Guarantee: row t is made of row t of `scores` and of the other rows of both arrays;
    `members[t]`, the answer, has no influence on it.

    Args:
        scores: (models, images) float, of `logit_confidence`.
        members: (models, images) bool, whether the model was trained on the image; drawn independently of each
            other. (Were each image in exactly half of the models, the others' bits would give the answer away.)

    Returns:
        (models, images) float64; 0 where no other model had the image, or all had it.
    """
    centred = scores - scores.mean(axis=0)  # a shift moves no ratio, and spares digits of the squares
    ratios = np.empty(scores.shape)
    for target in range(len(scores)):
        others = np.arange(len(scores)) != target
        count, mean, variance = _fit(centred[others], members[others])
        out_count, out_mean, out_variance = _fit(centred[others], ~members[others])
        told = np.minimum(count, out_count) > 0
        ratio = _log_density(centred[target], mean, variance) - _log_density(centred[target], out_mean, out_variance)
        ratios[target] = np.where(told, ratio, 0.0)
    return ratios


def _fit(scores: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean and variance of each image's chosen scores."""
    count = chosen.sum(axis=0)
    mean = (scores * chosen).sum(axis=0) / np.maximum(count, 1)
    squares = ((scores - mean) ** 2 * chosen).sum(axis=0)
    freedom = np.maximum(count - 1, 0)
    shared = max(squares.sum() / max(freedom.sum(), 1), np.finfo(np.float32).tiny)
    return count, mean, (squares + _SHARED_WEIGHT * shared) / (freedom + _SHARED_WEIGHT)


def _log_density(value: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return np.asarray(-0.5 * (np.log(variance) + (value - mean) ** 2 / variance))
