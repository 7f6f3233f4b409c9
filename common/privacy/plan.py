"""One frozen plan of public constants yields sampler, clip bound, noise and event together."""

import math
from dataclasses import dataclass
from functools import lru_cache

from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import DISCRETIZATION, DpSgdEvent, epsilon_of, pld_epsilon
from common.sections import RunConfig

# Rounding a clipped sum to the noise grid moves its sensitivity by at most this factor.
SENSITIVITY_SLACK = 1e-4
# Sample rates are rounded up to powers of 2^(1/16), so that clients of similar size share one plan.
_RATES_PER_OCTAVE = 16
_COARSE = 1e-3


@dataclass(frozen=True)
class PrivacyPlan:
    """DP-SGD at one client for a whole run; every field is a public constant.

    Attributes:
        num_units: Declared number of units of the client.
        sample_rate: Chance that a unit joins a batch.
        steps_per_round: Steps in each round the client takes part in.
        num_rounds: The most rounds the client takes part in.
        max_grad_norm: Clip bound of one unit's gradient over all tensors.
        noise_multiplier: Noise standard deviation over sensitivity.
        delta: The delta that epsilon is stated for.
    """

    num_units: int
    sample_rate: float
    steps_per_round: int
    num_rounds: int
    max_grad_norm: float
    noise_multiplier: float
    delta: float

    @property
    def expected_batch_size(self) -> float:
        """Divisor of every noised sum, in units; never the size that was drawn."""
        return self.sample_rate * self.num_units

    @property
    def noise_stddev(self) -> float:
        """Absolute noise of one step's sum, which covers the rounding to the grid too."""
        return self.noise_multiplier * self.max_grad_norm * (1 + SENSITIVITY_SLACK)

    def event(self, num_rounds: int | None = None) -> DpSgdEvent:
        """What so many rounds did (default: the whole plan)."""
        rounds = self.num_rounds if num_rounds is None else num_rounds
        return DpSgdEvent(self.sample_rate, self.noise_multiplier, rounds * self.steps_per_round)

    def epsilon(self, num_rounds: int | None = None) -> float:
        """Upper bound on epsilon after so many rounds (default: the whole plan).

        Raises:
            PrivacyError: The accountants disagree.
        """
        return epsilon_of([self.event(num_rounds)], delta=self.delta)


def plan_for(config: RunConfig, num_units: int) -> PrivacyPlan:
    """The plan of one client, from the run's configuration and the client's declared size.

    Guarantee: with a target, the whole plan's epsilon never exceeds it.

    Args:
        config: A run with mechanism `dp-sgd`.
        num_units: Declared number of units, at least 1.

    Raises:
        ConfigError: delta is not below 1 / num_units, or no noise meets the target.
        PrivacyError: The run has no privacy mechanism.
    """
    if config.privacy.mechanism != "dp-sgd" or config.privacy.max_grad_norm is None:
        raise PrivacyError("a privacy plan was asked for without privacy.mechanism='dp-sgd'")
    if num_units < 1 or config.privacy.delta >= 1 / num_units:
        raise ConfigError(
            f"privacy.delta={config.privacy.delta} must be below 1 / images of a client (here 1/{num_units}): "
            "a larger delta permits publishing whole images"
        )
    rate = round_up_rate(config.training.batch_size / num_units)
    steps = config.training.local_epochs * math.ceil(1 / rate)
    noise = config.privacy.noise_multiplier
    if noise is None:
        target = config.privacy.target_epsilon or 0.0
        noise = calibrate(rate, steps * config.participations, target, config.privacy.delta)
    return PrivacyPlan(
        num_units=num_units,
        sample_rate=rate,
        steps_per_round=steps,
        num_rounds=config.participations,
        max_grad_norm=config.privacy.max_grad_norm,
        noise_multiplier=noise,
        delta=config.privacy.delta,
    )


def round_up_rate(rate: float) -> float:
    """The smallest 2^(-j/16) that is at least `rate`, at most 1.

    >>> round_up_rate(0.5), round_up_rate(3.0)
    (0.5, 1.0)
    """
    if rate >= 1:
        return 1.0
    below = math.floor(-math.log2(rate) * _RATES_PER_OCTAVE + 1e-9)
    return float(2.0 ** (-below / _RATES_PER_OCTAVE))


@lru_cache(maxsize=1024)
def calibrate(sample_rate: float, steps: int, target_epsilon: float, delta: float) -> float:
    """The least noise multiplier, to 0.1 %, whose epsilon does not exceed the target.

    A coarse grid brackets the answer; the answer itself is found on the grid that
    every report uses.

    Args:
        sample_rate: In (0, 1].
        steps: Over the whole run.
        target_epsilon: Positive.
        delta: In (0, 1).

    Raises:
        ConfigError: Not even a noise multiplier of 10,000 meets the target.
    """
    if _epsilon(sample_rate, steps, delta, math.log(1e4), _COARSE) > target_epsilon:
        raise ConfigError(f"privacy.target-epsilon={target_epsilon} cannot be met with {steps} steps: ask for fewer")
    low, high = _bracket(sample_rate, steps, target_epsilon, delta)
    low, high = _bisect(sample_rate, steps, target_epsilon, delta, (low, high), _COARSE)
    # A coarse grid overstates epsilon, by a lot where epsilon is small: what it found is enough, maybe too much.
    width = 5e-4
    while _epsilon(sample_rate, steps, delta, high, DISCRETIZATION) > target_epsilon:
        high += width
    while _epsilon(sample_rate, steps, delta, high - width, DISCRETIZATION) <= target_epsilon:
        high, width = high - width, 2 * width
    _, high = _bisect(sample_rate, steps, target_epsilon, delta, (high - width, high), DISCRETIZATION)
    return math.exp(high)


def _bisect(
    sample_rate: float, steps: int, target: float, delta: float, bounds: tuple[float, float], discretization: float
) -> tuple[float, float]:
    """Narrow two logarithms of noise around the answer to 0.1 %; the upper one meets the target."""
    low, high = bounds
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _epsilon(sample_rate, steps, delta, middle, discretization) > target:
            low = middle
        else:
            high = middle
    return low, high


def _bracket(sample_rate: float, steps: int, target: float, delta: float) -> tuple[float, float]:
    """Logarithms of two noises around the answer, from a guess that is right for one big step."""
    low = high = math.log(max(0.3, sample_rate * math.sqrt(steps) * 4 / target + 0.2))
    while _epsilon(sample_rate, steps, delta, high, _COARSE) > target:
        low, high = high, high + 0.3
    while low == high or _epsilon(sample_rate, steps, delta, low, _COARSE) <= target:
        high, low = low, low - 0.3
    return low, high


def _epsilon(sample_rate: float, steps: int, delta: float, log_noise: float, discretization: float) -> float:
    return pld_epsilon(((sample_rate, math.exp(log_noise), steps),), delta, discretization)
