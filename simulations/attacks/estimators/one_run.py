"""Lower bounds on epsilon from guesses about many canaries of one run.

A separate fair coin decides for each canary whether it is in the run. The attacker guesses
some coins and abstains on the rest. Too many right guesses refute a claimed epsilon. All
guesses depend on the same run, which costs more the more often the attacker is wrong.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from common.errors import ConfigError
from simulations.attacks.estimators.gaussian_dp import epsilon_of_mu

TradeOff = Callable[[float], float]
_NORMAL = NormalDist()
_LARGEST_EPSILON = 64.0
_LARGEST_MU = 16.0
_PRECISION = 1e-6


@dataclass(frozen=True)
class OneRunLowerBound:
    """Lower bound on epsilon from the number of right guesses.

    Attributes:
        epsilon: Every smaller epsilon is refuted at `delta`; 0 if nothing was refuted.
        delta: The delta that `epsilon` belongs to.
        mu: The largest refuted mu if the mechanism is assumed Gaussian, else None.
        confidence: Of the bound.
        num_canaries: Number of canaries, each with its own coin.
        num_guesses: Number of coins that were guessed.
        num_correct: Number of right guesses.
    """

    epsilon: float
    delta: float
    mu: float | None
    confidence: float
    num_canaries: int
    num_guesses: int
    num_correct: int


@lru_cache(maxsize=4096)
def one_run_epsilon_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, *, delta: float, confidence: float
) -> OneRunLowerBound:
    """Return the largest epsilon that this many right guesses refute.

    Guarantee: for any mechanism, the result is above the true epsilon at `delta` with chance
    at most 1 - `confidence`, if the number of guesses was fixed in advance.

    Args:
        num_canaries: Number of canaries, each with its own coin.
        num_guesses: Number of coins that were guessed.
        num_correct: Number of right guesses.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, Theorem 5.2.

    >>> round(one_run_epsilon_lower_bound(1000, 100, 100, delta=1e-5, confidence=0.95).epsilon, 2)
    3.47
    """
    _check(num_canaries, num_guesses, num_correct, delta, confidence)

    def refuted(epsilon: float) -> bool:
        return _guessing_chance(num_canaries, num_guesses, num_correct, epsilon, delta) < 1.0 - confidence

    epsilon = _largest(refuted, _LARGEST_EPSILON)
    return OneRunLowerBound(epsilon, delta, None, confidence, num_canaries, num_guesses, num_correct)


@lru_cache(maxsize=4096)
def one_run_mu_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, *, delta: float, confidence: float
) -> OneRunLowerBound:
    """Return the largest mu that this many right guesses refute.

    Guarantee: if the mechanism is mu-GDP and the number of guesses was fixed in advance, the result is
    above its mu with chance at most 1 - `confidence`. With a tenth of the guesses wrong it is close to 0.

    Args:
        num_canaries: Number of canaries, each with its own coin.
        num_guesses: Number of coins that were guessed.
        num_correct: Number of right guesses.
        delta: For the epsilon of mu; in (0, 1).
        confidence: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Mahloujifar, Melis and Chaudhuri 2024, arXiv:2410.22235.

    >>> round(one_run_mu_lower_bound(1000, 100, 100, delta=1e-5, confidence=0.95).epsilon, 2)
    5.55
    """
    _check(num_canaries, num_guesses, num_correct, delta, confidence)

    def refuted(mu: float) -> bool:
        def trade_off(rate: float) -> float:
            return _NORMAL.cdf(_NORMAL.inv_cdf(1.0 - rate) - mu) if 0 < rate < 1 else 1.0 - rate

        return refutes_trade_off(num_canaries, num_guesses, num_correct, trade_off=trade_off, confidence=confidence)

    mu = _largest(refuted, _LARGEST_MU)
    epsilon = epsilon_of_mu(mu, delta=delta)
    return OneRunLowerBound(epsilon, delta, mu, confidence, num_canaries, num_guesses, num_correct)


def refutes_trade_off(
    num_canaries: int, num_guesses: int, num_correct: int, *, trade_off: TradeOff, confidence: float
) -> bool:
    """Return True if this many right guesses refute a trade-off curve.

    Guarantee: for a mechanism with this curve, True with chance at most 1 - `confidence`,
    if the number of guesses was fixed in advance.

    Args:
        num_canaries: Number of canaries, each with its own coin.
        num_guesses: Number of coins that were guessed.
        num_correct: Number of right guesses.
        trade_off: False positive rate -> smallest false negative rate. It must be its own
            inverse: where the two directions differ, pass the lower of both curves.
        confidence: In (0, 1).

    Raises:
        ConfigError: An argument is out of range.

    Source: Mahloujifar, Melis and Chaudhuri 2024, arXiv:2410.22235, Algorithm 3.
    """
    _check(num_canaries, num_guesses, num_correct, 0.0, confidence)
    share = num_guesses / num_canaries
    tail = (1.0 - confidence) * share
    right = tail * num_correct / num_guesses
    wrong = tail - right
    for count in range(num_correct - 1, -1, -1):
        least_wrong = max(wrong, trade_off(1.0 - right))
        right += count / (num_guesses - count) * (least_wrong - wrong)
        wrong = least_wrong
        if right + wrong > share:
            return True
    return False


def _guessing_chance(num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Bound the chance of this many right guesses under (epsilon, delta) from above."""
    # Under pure epsilon no guess is right more often than expit(epsilon). The rest pays for delta (Theorem 5.2).
    accuracy = float(expit(epsilon))
    pure = float(binom.sf(num_correct - 1, num_guesses, accuracy))
    just_below = binom.pmf(np.arange(num_correct - 1, -1, -1), num_guesses, accuracy)
    slip = float((np.cumsum(just_below) / np.arange(1, num_correct + 1)).max(initial=0.0))
    return min(1.0, pure + 2.0 * num_canaries * delta * slip)


def _largest(refuted: Callable[[float], bool], limit: float) -> float:
    """Return the largest refuted value up to `limit`, rounded down (0 if none)."""
    low, high = 0.0, limit
    if not refuted(low):
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    # `low` itself was refuted, and `high` was not: only `low` is a lower bound.
    return low


def _check(num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float) -> None:
    if not (0 <= num_correct <= num_guesses <= num_canaries and num_guesses >= 1):
        raise ConfigError(
            f"audit: {num_correct} right of {num_guesses} guesses about {num_canaries} canaries is impossible"
        )
    if not (0 <= delta < 1 and 0 < confidence < 1 and math.isfinite(delta)):
        raise ConfigError(f"audit: delta must be in [0, 1) and confidence in (0, 1), got {delta} and {confidence}")
