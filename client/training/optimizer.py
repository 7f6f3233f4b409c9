"""Local optimiser of plain arrays, in NumPy alone."""

import numpy as np

from client.training.round_settings import LocalSettings


class ArrayOptimizer:
    """Optimiser of one array, SGD with momentum or AdamW.

    The proximal term pulls to `start`. Every round starts with zero momentum, since a client keeps nothing between
    rounds. On noised gradients all of this is post-processing and costs no privacy.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (AdamW); Li et al. 2020, arXiv:1812.06127 (FedProx).
    """

    _BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-8

    def __init__(self, settings: LocalSettings, start: np.ndarray) -> None:
        self._settings = settings
        self._start = start.copy() if settings.proximal_mu else None
        self._first = np.zeros_like(start)
        self._second = np.zeros_like(start) if settings.optimizer == "adamw" else None
        self._steps = 0

    def step(self, weights: np.ndarray, gradient: np.ndarray) -> None:
        """Move the weights in place by one step along a mean gradient."""
        with_prox = gradient
        if self._start is not None:
            with_prox = with_prox + weights.dtype.type(self._settings.proximal_mu) * (weights - self._start)
        self._steps += 1
        if self._second is None:
            self._sgd(weights, with_prox)
        else:
            self._adamw(weights, with_prox, self._second)

    def _sgd(self, weights: np.ndarray, gradient: np.ndarray) -> None:
        settings = self._settings
        if settings.weight_decay:
            gradient = gradient + settings.weight_decay * weights
        self._first = settings.momentum * self._first + gradient
        weights -= settings.learning_rate * self._first

    def _adamw(self, weights: np.ndarray, gradient: np.ndarray, second: np.ndarray) -> None:
        rate = self._settings.learning_rate
        weights *= 1.0 - rate * self._settings.weight_decay
        self._first += (1 - self._BETA_1) * (gradient - self._first)
        second += (1 - self._BETA_2) * (gradient * gradient - second)
        first = self._first / (1 - self._BETA_1**self._steps)
        scale = np.sqrt(second / (1 - self._BETA_2**self._steps)) + self._TINY
        weights -= rate * first / scale
