"""One frozen plan of public constants yields sampler, clip bound, noise and events together."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from common.errors import PrivacyError
from common.privacy.accounting import Spent, spent_by
from common.privacy.calibration import counts_noise
from common.privacy.discrete_gaussian import sampled_stddev
from common.privacy.events import CountsEvent, DpSgdEvent, Event

# Rounding a clipped sum to the noise grid moves its sensitivity by at most this factor.
SENSITIVITY_SLACK = 1e-4
# Sample rates are rounded up to powers of 2^(1/16), so that clients of similar size share one plan.
_RATES_PER_OCTAVE = 16


@dataclass(frozen=True)
class PublicConstants:
    """The settings of a run that a privacy plan follows from, and nothing else.

    Client and server know all of them before round 1, so both compute the same plan.

    Attributes:
        target_epsilon: Epsilon wanted for the whole run; None where the noise is set.
        noise_multiplier: Noise that was set; None where it follows from the target.
        delta: The delta that epsilon is stated for.
        unit: Value of `privacy.unit`.
        max_grad_norm: Clip bound of one unit's gradient.
        clipping_norm: Clip bound of one client's update.
        metrics: How counts of held-out units leave.
        counts_noise: Noise of each round's pair of counts, before it is raised for the target.
        closing_noise: The same for the closing matrix.
        batch_size: Expected units a step.
        local_epochs: Passes over a client's units in a round.
        num_clients: Clients of the run.
        cohort_size: Clients of a round.
        participations: The most rounds that one client takes part in.
    """

    target_epsilon: float | None
    noise_multiplier: float | None
    delta: float
    unit: str
    max_grad_norm: float
    clipping_norm: float
    metrics: str
    counts_noise: float
    closing_noise: float
    batch_size: int
    local_epochs: int
    num_clients: int
    cohort_size: int
    participations: int


@dataclass(frozen=True)
class CountsPlan:
    """Counts of held-out units that leave a client during a whole run; every field is a public constant.

    Attributes:
        num_rounds: The most rounds in which the pair (correct, wrong) leaves.
        noise_stddev: Parameter of its discrete Gaussian noise; one unit moves one count by 1.
        closing_noise_stddev: The same for the confusion matrix that leaves once, at the end.
    """

    num_rounds: int
    noise_stddev: float
    closing_noise_stddev: float

    def events(self) -> tuple[CountsEvent, ...]:
        """What the whole plan does to a held-out unit."""
        return (CountsEvent(self.noise_stddev, self.num_rounds), CountsEvent(self.closing_noise_stddev, 1))


@dataclass(frozen=True)
class PrivacyPlan:
    """A mechanism for a whole run; every field is a public constant.

    Attributes:
        mechanism: `dp-sgd` at one client, or `client-dp` at the server.
        privacy_unit: What the guarantee is for: `image`, `group` of images, or `client`.
        num_units: Declared number of units: of the client, or of the server's cohort.
        sample_rate: Chance that a unit joins a batch.
        steps_per_round: Steps in each round.
        num_rounds: The most rounds that are charged.
        max_grad_norm: Clip bound of one unit's contribution over all tensors.
        noise_multiplier: Noise standard deviation over sensitivity.
        delta: The delta that epsilon is stated for.
        counts: What leaves about held-out units; None if nothing does.
    """

    mechanism: str
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
        """Divisor of every noised sum, in units; never the size that was drawn."""
        return self.sample_rate * self.num_units

    @property
    def noise_stddev(self) -> float:
        """Absolute noise of one step's sum, which covers the rounding to the grid too."""
        return self.noise_multiplier * self.max_grad_norm * (1 + SENSITIVITY_SLACK)

    def event(self, num_rounds: int | None = None) -> DpSgdEvent:
        """What so many rounds did to a trained unit (default: the whole plan)."""
        rounds = self.num_rounds if num_rounds is None else num_rounds
        return DpSgdEvent(self.sample_rate, self.noise_multiplier, rounds * self.steps_per_round)

    def counts_events(self, num_rounds: int | None = None, *, closing: bool = True) -> tuple[Event, ...]:
        """What so many rounds did to a held-out unit (default: the whole plan)."""
        if self.counts is None:
            return ()
        pair, matrix = self.counts.events()
        return (replace(pair, releases=pair.releases if num_rounds is None else num_rounds), matrix)[: 1 + closing]

    def spent(self, num_rounds: int | None = None, *, closing: bool = True) -> Spent:
        """Upper bounds on epsilon for the unit that is worst off, trained or held out.

        Args:
            num_rounds: So many rounds; the whole plan if left out.
            closing: Whether the closing matrix has left.

        Raises:
            ConfigError: Epsilon is beyond what means anything.
            PrivacyError: The accountants disagree.
        """
        trained = spent_by([self.event(num_rounds)], delta=self.delta)
        held_out = spent_by(self.counts_events(num_rounds, closing=closing), delta=self.delta)
        return Spent(max(trained.pld, held_out.pld), max(trained.rdp, held_out.rdp))

    def epsilon(self, num_rounds: int | None = None) -> float:
        """The official bound of `spent`.

        Raises:
            ConfigError: Epsilon is beyond what means anything.
            PrivacyError: The accountants disagree.
        """
        return self.spent(num_rounds).pld

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "PrivacyPlan":
        """The inverse of `as_json`.

        Raises:
            PrivacyError: It is no plan.
        """
        try:
            counts = found["counts"]
            return cls(**{**found, "counts": None if counts is None else CountsPlan(**counts)})
        except (KeyError, TypeError):
            raise PrivacyError("a ledger holds what is no privacy plan") from None

    @property
    def digest(self) -> str:
        """64 hex digits that name the plan."""
        return _digest_of(self)


@lru_cache(maxsize=1024)
def _digest_of(plan: PrivacyPlan) -> str:
    return hashlib.sha256(json.dumps(plan.as_json(), sort_keys=True).encode()).hexdigest()


def counts_plan(constants: PublicConstants) -> CountsPlan | None:
    """Return the noise of counts as set, or more of it where the target is lower than what that costs.

    Raises:
        ConfigError: No noise meets the target.
    """
    if constants.metrics != "private":
        return None
    rounds, factor = constants.participations, 1.0
    if constants.target_epsilon is not None:
        as_set = (CountsEvent(constants.counts_noise, rounds), CountsEvent(constants.closing_noise, 1))
        factor = counts_noise(as_set, target_epsilon=constants.target_epsilon, delta=constants.delta)
    # The accountant is told the parameter that the sampler draws exactly, not the one that was asked for.
    pair, matrix = (float(sampled_stddev(factor * x)) for x in (constants.counts_noise, constants.closing_noise))
    return CountsPlan(rounds, pair, matrix)


def round_up_rate(rate: float) -> float:
    """The smallest 2^(-j/16) that is at least `rate`, at most 1.

    >>> round_up_rate(0.5), round_up_rate(3.0)
    (0.5, 1.0)
    """
    if rate >= 1:
        return 1.0
    below = math.floor(-math.log2(rate) * _RATES_PER_OCTAVE + 1e-9)
    return float(2.0 ** (-below / _RATES_PER_OCTAVE))
