"""Privacy plans of public constants, fixed before a run starts.

Sampler, clip bound, noise and events all come from one plan, so they cannot disagree.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from common.config.schema import Mechanism, PrivacyConfig, RunConfig
from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import Spent, spent_by
from common.privacy.calibration import calibrate, counts_noise
from common.privacy.discrete_gaussian import sampled_stddev
from common.privacy.events import CountsEvent, DpSgdEvent, Event

# Rounding a clipped sum to the noise grid increases its sensitivity by at most this factor.
SENSITIVITY_SLACK = 1e-4
# Sample rates are rounded up to powers of 2^(1/16), so that clients of similar size share one plan.
_RATES_PER_OCTAVE = 16


@dataclass(frozen=True)
class CountsPlan:
    """Counts of held-out units that leave a client during a run.

    Every field is a public constant.

    Attributes:
        num_rounds: The most rounds in which the pair (correct, wrong) leaves.
        noise_stddev: Parameter of the pair's discrete Gaussian noise; one unit changes one count by 1.
        closing_noise_stddev: The same for the confusion matrix, which leaves once at the end.
    """

    num_rounds: int
    noise_stddev: float
    closing_noise_stddev: float

    def events(self) -> tuple[CountsEvent, ...]:
        """Return the whole plan's events on a held-out unit."""
        return (CountsEvent(self.noise_stddev, self.num_rounds), CountsEvent(self.closing_noise_stddev, 1))


@dataclass(frozen=True)
class PrivacyPlan:
    """A privacy mechanism with its parameters for a whole run.

    Every field is a public constant.

    Attributes:
        mechanism: `dp-sgd` at one client, or `client-dp` at the server.
        privacy_unit: What the guarantee is for: `image`, `group` of images, or `client`.
        num_units: Declared number of units of the client, or of clients in the server's cohort.
        sample_rate: Chance that a unit joins a batch.
        steps_per_round: Steps in each round.
        num_rounds: The most rounds that are charged.
        max_grad_norm: Clip bound of one unit's contribution over all tensors.
        noise_multiplier: Noise standard deviation over sensitivity.
        delta: The delta that epsilon is stated for.
        counts: Counts of held-out units that leave; None if none leave.
    """

    mechanism: Mechanism
    privacy_unit: str
    num_units: int
    sample_rate: float
    steps_per_round: int
    num_rounds: int
    max_grad_norm: float
    noise_multiplier: float
    delta: float
    counts: CountsPlan | None = None

    @property
    def expected_batch_size(self) -> float:
        """The divisor of every noised sum, in units.

        It is never the size of the batch that was drawn: that size depends on the data.
        """
        return self.sample_rate * self.num_units

    @property
    def noise_stddev(self) -> float:
        """The absolute noise of one step's sum.

        The slack covers what rounding to the noise grid adds to the sensitivity.
        """
        return self.noise_multiplier * self.max_grad_norm * (1 + SENSITIVITY_SLACK)

    def event(self, num_rounds: int | None = None) -> DpSgdEvent:
        """Return the event of some rounds on a trained unit.

        Without `num_rounds` it is the event of the whole plan.
        """
        rounds = self.num_rounds if num_rounds is None else num_rounds
        return DpSgdEvent(self.sample_rate, self.noise_multiplier, rounds * self.steps_per_round)

    def counts_events(self, num_rounds: int | None = None, *, closing: bool = True) -> tuple[Event, ...]:
        """Return the events of some rounds on a held-out unit.

        Without `num_rounds` they are the events of the whole plan. `closing` includes the closing matrix.
        """
        if self.counts is None:
            return ()
        pair, matrix = self.counts.events()
        return (replace(pair, releases=pair.releases if num_rounds is None else num_rounds), matrix)[: 1 + closing]

    def spent(self, num_rounds: int | None = None, *, closing: bool = True) -> Spent:
        """Return the bounds on epsilon of the worst-off unit, trained or held out.

        Args:
            num_rounds: Number of rounds; the whole plan if left out.
            closing: Whether the closing matrix has left.

        Raises:
            ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
            PrivacyError: The accountants disagree.
        """
        # No unit is both trained and held out, so the larger of the two bounds holds for every unit.
        trained = spent_by([self.event(num_rounds)], delta=self.delta)
        held_out = spent_by(self.counts_events(num_rounds, closing=closing), delta=self.delta)
        return Spent(max(trained.pld, held_out.pld), max(trained.rdp, held_out.rdp))

    def epsilon(self, num_rounds: int | None = None) -> float:
        """Return the official bound on epsilon, by PLD.

        Raises:
            ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
            PrivacyError: The accountants disagree.
        """
        return self.spent(num_rounds).pld

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PrivacyPlan":
        """Return the plan that `as_json` turned into plain values.

        Raises:
            PrivacyError: The values are not a plan.
        """
        try:
            counts = values["counts"]
            return cls(**{**values, "counts": None if counts is None else CountsPlan(**counts)})
        except (KeyError, TypeError):
            raise PrivacyError("a ledger holds a value that is not a privacy plan") from None

    @property
    def digest(self) -> str:
        """The plan's name, 64 hex digits that follow from all fields."""
        return _digest_of(self)


@lru_cache(maxsize=1024)
def _digest_of(plan: PrivacyPlan) -> str:
    return hashlib.sha256(json.dumps(plan.as_json(), sort_keys=True).encode()).hexdigest()


def plan_for(config: RunConfig, num_units: int) -> PrivacyPlan:
    """Return the plan of one client of a declared size.

    Guarantee: if the run has a target, the whole plan's epsilon never exceeds it for any unit.

    Args:
        config: A run with mechanism `dp-sgd`.
        num_units: Declared number of units, at least 1.

    Raises:
        ConfigError: delta is not below 1 / num_units, or no noise meets the target.
        PrivacyError: The run has another mechanism.
    """
    privacy, rounds = config.privacy, config.participations
    if config.privacy.mechanism != "dp-sgd" or privacy.max_grad_norm is None:
        raise PrivacyError("a client's privacy plan was asked for without privacy.mechanism='dp-sgd'")
    _check_delta(privacy.delta, num_units, "images of a client" if privacy.unit == "image" else "groups of a client")
    # Rounding down would draw smaller batches than the events say. Rounding up only costs epsilon.
    rate = round_up_rate(config.training.batch_size / num_units)
    steps = config.training.local_epochs * math.ceil(1 / rate)
    return PrivacyPlan(
        mechanism="dp-sgd",
        privacy_unit=privacy.unit,
        num_units=num_units,
        sample_rate=rate,
        steps_per_round=steps,
        num_rounds=rounds,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=_noise(privacy, rate, steps * rounds),
        delta=privacy.delta,
        counts=_counts_plan(privacy, rounds) if config.metrics == "private" else None,
    )


def server_plan(config: RunConfig) -> PrivacyPlan:
    """Return the plan of a server that clips updates and adds noise.

    A client takes part in at most `config.participations` rounds. Each round releases the sum over its cohort divided
    by the cohort's planned size, whichever clients answered.

    Args:
        config: A run with mechanism `client-dp`.

    Raises:
        ConfigError: delta is not below 1 / num-clients, or no noise meets the target.
        PrivacyError: The run has another mechanism.
    """
    privacy, rounds = config.privacy, config.participations
    if config.privacy.mechanism != "client-dp" or privacy.clipping_norm is None:
        raise PrivacyError("a server's privacy plan was asked for without privacy.mechanism='client-dp'")
    _check_delta(privacy.delta, config.num_clients, "clients")
    return PrivacyPlan(
        mechanism="client-dp",
        privacy_unit="client",
        num_units=config.cohort_size,
        # The server knows who takes part, so no amplification by sampling of clients is claimed.
        sample_rate=1.0,
        steps_per_round=1,
        num_rounds=rounds,
        max_grad_norm=privacy.clipping_norm,
        noise_multiplier=_noise(privacy, 1.0, rounds),
        delta=privacy.delta,
    )


def _check_delta(delta: float, num_units: int, units: str) -> None:
    """Refuse a delta that allows publishing a random unit as it is."""
    if num_units < 1 or delta >= 1 / num_units:
        raise ConfigError(
            f"privacy.delta={delta} must be below 1 / {units} (here 1/{num_units}): a larger delta allows publishing "
            "some of them as they are"
        )


def _noise(privacy: PrivacyConfig, sample_rate: float, steps: int) -> float:
    """Return the noise multiplier as set or as calibrated to the target."""
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    return calibrate(sample_rate, steps, privacy.target_epsilon or 0.0, privacy.delta)


def _counts_plan(privacy: PrivacyConfig, rounds: int) -> CountsPlan:
    """Return the plan for counts, with more noise if the target requires it."""
    factor = 1.0
    if privacy.target_epsilon is not None:
        asked = (CountsEvent(privacy.counts_noise, rounds), CountsEvent(privacy.closing_noise, 1))
        factor = counts_noise(asked, target_epsilon=privacy.target_epsilon, delta=privacy.delta)
    # The sampler rounds its parameter up. The accountant must be told the parameter that is really used.
    pair, matrix = (float(sampled_stddev(factor * noise)) for noise in (privacy.counts_noise, privacy.closing_noise))
    return CountsPlan(rounds, pair, matrix)


def round_up_rate(rate: float) -> float:
    """Return the smallest 2^(-j/16) that is at least a rate.

    The result is at most 1.

    >>> round_up_rate(0.5), round_up_rate(3.0)
    (0.5, 1.0)
    """
    if rate >= 1:
        return 1.0
    # The small term keeps a rate that is a power of 2^(1/16) where it is, in spite of rounding in the logarithm.
    exponent = math.floor(-math.log2(rate) * _RATES_PER_OCTAVE + 1e-9)
    return float(2.0 ** (-exponent / _RATES_PER_OCTAVE))
