"""What guesses about many canaries of one single run say about its privacy.

Each canary is in the run by a fair coin of its own. The attacker guesses some coins and
abstains on the rest; too many right guesses refute a claim. Guesses depend on each other
through the run, which costs more the more often the attacker is wrong.
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
    """What so many right guesses refute.

    Attributes:
        epsilon: Nothing below it holds at `delta`; 0 if nothing was refuted.
        delta: At which epsilon was asked for.
        mu: The largest refuted mu, if the mechanism was taken for a Gaussian one.
        confidence: That the bound holds.
        num_canaries: Coins that were thrown.
        num_guesses: Coins that were guessed.
        num_correct: Of these, rightly.
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
    """The largest epsilon that so many right guesses refute, for any mechanism at all.

    Guarantee: above the true epsilon at `delta` with chance at most 1 - `confidence`,
    if the number of guesses was fixed in advance.

    Args:
        num_canaries: Canaries with a coin of their own.
        num_guesses: How many of them were guessed.
        num_correct: How many of the guesses were right.
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

    found = _largest(refuted, _LARGEST_EPSILON)
    return OneRunLowerBound(found, delta, None, confidence, num_canaries, num_guesses, num_correct)


@lru_cache(maxsize=4096)
def one_run_mu_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, *, delta: float, confidence: float
) -> OneRunLowerBound:
    """The largest mu that so many right guesses refute, if the mechanism is a Gaussian one.

    Guarantee: if the mechanism is mu-GDP, above mu with chance at most 1 - `confidence`.
    It needs guesses that are nearly all right: a tenth wrong, and it says next to nothing.

    Args:
        num_canaries: Canaries with a coin of their own.
        num_guesses: How many of them were guessed.
        num_correct: How many of the guesses were right.
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
    """Whether so many right guesses are too rare under every mechanism with this trade-off.

    Guarantee: true with chance at most 1 - `confidence` for a mechanism that has it, if
    the number of guesses was fixed in advance.

    Args:
        num_canaries: Canaries with a coin of their own.
        num_guesses: How many of them were guessed.
        num_correct: How many of the guesses were right.
        trade_off: False positive rate -> least false negative rate, equal to its own
            inverse: where directions differ, the lower of both curves.
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
    """Upper bound on the chance of so many right guesses under (epsilon, delta)."""
    accuracy = float(expit(epsilon))
    pure = float(binom.sf(num_correct - 1, num_guesses, accuracy))
    just_below = binom.pmf(np.arange(num_correct - 1, -1, -1), num_guesses, accuracy)
    slip = float((np.cumsum(just_below) / np.arange(1, num_correct + 1)).max(initial=0.0))
    return min(1.0, pure + 2.0 * num_canaries * delta * slip)


def _largest(refuted: Callable[[float], bool], most: float) -> float:
    """The largest refuted value, from below; 0 if there is none."""
    low, high = 0.0, most
    if not refuted(low):
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _check(num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float) -> None:
    if not (0 <= num_correct <= num_guesses <= num_canaries and num_guesses >= 1):
        raise ConfigError(
            f"audit: {num_correct} right of {num_guesses} guesses about {num_canaries} canaries is impossible"
        )
    if not (0 <= delta < 1 and 0 < confidence < 1 and math.isfinite(delta)):
        raise ConfigError(f"audit: delta in [0, 1) and confidence in (0, 1), got {delta} and {confidence}")
