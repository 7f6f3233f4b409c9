"""Privacy plans of public constants, fixed before a run starts.

Sampler, clip bound, noise and events all come from one plan, so they cannot disagree.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from common.errors import PrivacyError
from common.privacy.accounting import Spent, spent_alone, spent_by
from common.privacy.calibration import calibrate
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.noise_error import FLOATING_POINT, draws_of
from common.privacy.public_constants import PublicConstants

# Rounding a clipped sum to the noise grid increases its sensitivity by at most this factor.
SENSITIVITY_SLACK = 1e-4
# Sample rates are rounded up to powers of 2^(1/16), so that clients of similar size share one plan.
_RATES_PER_OCTAVE = 16


@dataclass(frozen=True)
class PrivacyPlan:
    """A privacy mechanism with its parameters for a whole run.

    Every field is a public constant.

    Attributes:
        mechanism: `dp-sgd` or `dp-statistics` at one client, or `client-dp` at the server or at all clients of a sum.
        privacy_unit: What the guarantee is for: `image`, `group` of images, or `client`.
        num_units: Declared number of units of the client, or of clients in a round's cohort.
        sample_rate: Chance that a unit joins a batch.
        steps_per_round: Steps in each round.
        num_rounds: The most rounds that are charged.
        max_grad_norm: Clip bound of one unit's contribution over all tensors.
        noise_multiplier: Noise standard deviation over sensitivity.
        delta: The delta that epsilon is stated for.
        counts: Counts of held-out units that leave; None if none leave.
        learning_rate: Learning rate by the public rule; None where a setting gives it.
        sampler: Version of the noise sampler. The events store it. The plan's JSON and digest leave it out, so
            that a run that an earlier version began keeps its name.
        label_noise_stddev: Noise of the training labels' counts, which balanced class weights follow from; None if
            weights do not depend on labels.
        noise_shares: Least number of honest clients whose shares are the noise of a secure sum; 0 where the noise is
            drawn in one place. `noise_multiplier` is that of all these shares together.
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
    learning_rate: float | None = None
    sampler: int = FLOATING_POINT
    label_noise_stddev: float | None = None
    noise_shares: int = 0

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

    @property
    def client_noise_stddev(self) -> float:
        """The absolute noise that one client adds to a step's sum."""
        return self.noise_stddev / math.sqrt(self.noise_shares or 1)

    def event(self, num_rounds: int | None = None) -> DpSgdEvent:
        """Return the event of some rounds on a trained unit.

        Without `num_rounds` it is the event of the whole plan.
        """
        rounds = self.num_rounds if num_rounds is None else num_rounds
        steps, draws = rounds * self.steps_per_round, draws_of(self.sampler)
        return DpSgdEvent(
            self.sample_rate,
            self.noise_multiplier,
            steps,
            sampler=self.sampler,
            draws_per_step=draws,
            noise_shares=self.noise_shares,
        )

    def label_events(self) -> tuple[CountsEvent, ...]:
        """Return the event of a run's label counts on a trained unit.

        There is none if class weights do not depend on labels.
        """
        return () if self.label_noise_stddev is None else (CountsEvent(self.label_noise_stddev, 1),)

    def training_events(self, num_rounds: int | None = None) -> tuple[Event, ...]:
        """Return all events of some rounds on a trained unit.

        Without `num_rounds` they are the events of the whole plan.
        """
        # The label counts come before the first round, and the weights of all rounds follow from them.
        return (self.event(num_rounds), *(() if num_rounds == 0 else self.label_events()))

    def num_counted(self, server_rounds: Iterable[int]) -> int:
        """Return how many of some rounds are counted."""
        return 0 if self.counts is None else sum(number % self.counts.every == 0 for number in server_rounds)

    def counts_events(self, num_counted: int | None = None, *, closing: bool = True) -> tuple[Event, ...]:
        """Return the events of some counted rounds on a held-out unit.

        Without `num_counted` they are the events of the whole plan. `closing` includes the closing counts.
        """
        if self.counts is None:
            return ()
        pair, *closing_events = self.counts.events()
        pairs = replace(pair, releases=pair.releases if num_counted is None else num_counted)
        return (pairs, *(closing_events if closing else ()))

    def spent(self, num_rounds: int | None = None, num_counted: int | None = None, *, closing: bool = True) -> Spent:
        """Return the bounds on epsilon of the worst-off unit, trained or held out.

        Without `num_counted` as many of the `num_rounds` rounds are counted as the plan has.

        Raises:
            ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
            PrivacyError: The accountants disagree.
        """
        # No unit is both trained and held out, so the larger of the two bounds holds for every unit.
        trained = spent_by(self.training_events(num_rounds), delta=self.delta)
        if num_counted is None and num_rounds is not None and self.counts is not None:
            num_counted = min(num_rounds, self.counts.num_rounds)
        held_out = spent_by(self.counts_events(num_counted, closing=closing), delta=self.delta)
        return Spent(max(trained.pld, held_out.pld), max(trained.rdp, held_out.rdp))

    def spent_alone(self) -> Spent:
        """Return the whole plan's bounds if all other clients collude.

        Without noise in shares they are those of `spent`.

        Raises:
            PrivacyError: The accountants disagree.
        """
        parts = (self.training_events(), self.counts_events())
        costs = [spent_alone(events, delta=self.delta) for events in parts]
        return Spent(max(cost.pld for cost in costs), max(cost.rdp for cost in costs))

    def epsilon(self, num_rounds: int | None = None) -> float:
        """Return the official bound on epsilon, by PLD.

        Raises:
            ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
            PrivacyError: The accountants disagree.
        """
        return self.spent(num_rounds).pld

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values for `from_json`."""
        values = asdict(self) | {"counts": None if self.counts is None else self.counts.as_json()}
        # Events name the sampler. Plans of before these fields existed lack them. Their digests are kept for ever.
        added = [name for name in ("learning_rate", "label_noise_stddev") if values[name] is None]
        added += [] if self.noise_shares else ["noise_shares"]
        return {name: value for name, value in values.items() if name not in ("sampler", *added)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PrivacyPlan":
        """Return the plan that `as_json` turned into plain values.

        Raises:
            PrivacyError: The values are not a plan.
        """
        try:
            counts = values["counts"]
            if counts is not None:
                counts = CountsPlan(**{**counts, "subgroups": tuple(counts.get("subgroups", ()))})
            return cls(**{**values, "counts": counts})
        except (KeyError, TypeError):
            raise PrivacyError("a ledger holds a value that is not a privacy plan") from None

    @property
    def digest(self) -> str:
        """The plan's name, 64 hex digits that follow from all fields."""
        return _digest_of(self)


@lru_cache(maxsize=1024)
def _digest_of(plan: PrivacyPlan) -> str:
    return hashlib.sha256(json.dumps(plan.as_json(), sort_keys=True).encode()).hexdigest()


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


def calibrated_noise(
    constants: PublicConstants, sample_rate: float, steps: int, of_labels: float | None = None
) -> float:
    """Return the noise multiplier of a plan's steps.

    It is the one that was set, or the least one that meets the target. `of_labels` is the noise of label counts beside
    the steps.

    Raises:
        ConfigError: No noise meets the target.
    """
    if constants.noise_multiplier is not None:
        return constants.noise_multiplier
    beside = () if of_labels is None else (CountsEvent(of_labels, 1),)
    return calibrate(
        sample_rate, steps, constants.target_epsilon or 0.0, constants.delta, beside, constants.noise_shares
    )
