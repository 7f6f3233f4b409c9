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
from common.privacy.calibration import (
    LEAST_COUNTS_NOISE,
    calibrate,
    counts_noise,
    histogram_events,
    histogram_noise,
    split_counts_noise,
    subgroup_noise,
)
from common.privacy.discrete_gaussian import sampled_stddev
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.noise_error import FLOATING_POINT, draws_of

# Rounding a clipped sum to the noise grid increases its sensitivity by at most this factor.
SENSITIVITY_SLACK = 1e-4
# Sample rates are rounded up to powers of 2^(1/16), so that clients of similar size share one plan.
_RATES_PER_OCTAVE = 16
# Noise of label counts over the noise at which one release of everything would cost as much as the whole plan. The
# counts then take about a ninth of the squared privacy loss, and the noise of the steps grows by about 6 %.
LABEL_NOISE = 3.0
# Fields of a plan of counts that are the noise of a release.
_COUNTS_NOISES = (
    "noise_stddev",
    "closing_noise_stddev",
    "scores_noise_stddev",
    "calibration_noise_stddev",
    "subgroups_noise_stddev",
)


@dataclass(frozen=True)
class PublicConstants:
    """Settings of a run that a privacy plan follows from.

    Client and server know all of them before round 1, so both compute the same plan.

    Attributes:
        target_epsilon: Epsilon wanted for the whole run; None where the noise is set.
        noise_multiplier: Noise that was set; None where it follows from the target.
        delta: The delta that epsilon is stated for.
        unit: Value of `privacy.unit`.
        max_grad_norm: Clip bound of one unit's gradient.
        clipping_norm: Clip bound of one client's update; None where it follows from the noise.
        metrics: How counts of held-out units leave.
        counts_noise: Noise of each counted round's pair, before it is raised for the target; None where it follows
            from the target.
        closing_noise: Like `counts_noise`, for the closing matrix.
        histogram_classes: Number of classes, where score and calibration histograms leave at the end; None where none
            leave.
        subgroups: Public list by which closing counts are divided, the last one for all other values; empty where they
            are not divided.
        counted_every: A round is counted if its number is a multiple of this.
        counted_rounds: The most counted rounds that one client takes part in.
        batch_size: Expected units a step; None for all of them.
        local_epochs: Passes over a client's units in a round.
        steps_by_rule: Whether the target decides the number of full batches in a round.
        rate_by_rule: Whether the learning rate follows from the plan.
        momentum: Momentum of the local optimizer.
        balanced: Whether class weights follow from each client's labels.
        num_clients: Clients of the run.
        cohort_size: Clients of a round.
        num_rounds: Rounds of the run.
        participations: The most rounds that one client takes part in.
        noise_shares: Least number of honest clients whose shares are the noise of a secure sum; 0 where each client, or
            the server, draws all of the noise.
    """

    target_epsilon: float | None
    noise_multiplier: float | None
    delta: float
    unit: str
    max_grad_norm: float
    clipping_norm: float | None
    metrics: str
    counts_noise: float | None
    closing_noise: float | None
    histogram_classes: int | None
    subgroups: tuple[str, ...]
    counted_every: int
    counted_rounds: int
    batch_size: int | None
    local_epochs: int
    steps_by_rule: bool
    rate_by_rule: bool
    momentum: float
    balanced: bool
    num_clients: int
    cohort_size: int
    num_rounds: int
    participations: int
    noise_shares: int = 0


@dataclass(frozen=True)
class CountsPlan:
    """Counts of held-out units that leave a client during a run.

    Every field is a public constant. The pair (correct, wrong) leaves in at most `num_rounds` rounds, those whose
    number is a multiple of `every`, under discrete Gaussian noise of parameter `noise_stddev`; one unit changes one
    count by 1. `closing_noise_stddev` is the same for the confusion matrix, which leaves once at the end. Where
    `num_classes` is not None, score histograms, one for each class, and the calibration histogram of the likeliest
    class leave with it, each under noise of its own. Where `subgroups` are named, so do right and wrong predictions of
    each: one unit changes one of these counts by 1. `noise_shares` is that of the
    plan.
    """

    num_rounds: int
    noise_stddev: float
    closing_noise_stddev: float
    every: int = 1
    num_classes: int | None = None
    scores_noise_stddev: float | None = None
    calibration_noise_stddev: float | None = None
    subgroups: tuple[str, ...] = ()
    subgroups_noise_stddev: float | None = None
    noise_shares: int = 0

    def events(self) -> tuple[CountsEvent, ...]:
        """Return the whole plan's events on a held-out unit, the rounds' first."""
        pairs = CountsEvent(self.noise_stddev, self.num_rounds, noise_shares=self.noise_shares)
        return (pairs, *self.closing_events())

    def closing_events(self) -> tuple[CountsEvent, ...]:
        """Return the events of the closing release, one for each thing that leaves."""
        events = [CountsEvent(self.closing_noise_stddev, 1)]
        if self.num_classes is not None:
            # Histograms without noise would have no event.
            if self.scores_noise_stddev is None or self.calibration_noise_stddev is None:
                raise PrivacyError("a plan has histograms without noise")
            events += histogram_events(self.scores_noise_stddev, self.calibration_noise_stddev, self.num_classes)
        if self.subgroups:
            if self.subgroups_noise_stddev is None:
                raise PrivacyError("a plan has counts by subgroup without noise")
            # A unit votes in one cell of one subgroup, so the L2 sensitivity is 1.
            events.append(CountsEvent(self.subgroups_noise_stddev, 1))
        return tuple(replace(event, noise_shares=self.noise_shares) for event in events)

    def of_one_client(self, noise_stddev: float) -> float:
        """Return the part of a noise that one client adds."""
        return noise_stddev / math.sqrt(self.noise_shares or 1)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without later fields at their old values."""
        # JSON has no tuples, and a plan that is read back must be equal to the one that was written.
        values = asdict(self) | {"subgroups": list(self.subgroups)}
        # Plans from before a field existed must keep their digests.
        of_histograms = {"num_classes": None, "scores_noise_stddev": None, "calibration_noise_stddev": None}
        added: dict[str, Any] = {"every": 1, **of_histograms, "subgroups": [], "subgroups_noise_stddev": None}
        added |= {"noise_shares": 0}
        return {name: value for name, value in values.items() if name not in added or value != added[name]}


@dataclass(frozen=True)
class PrivacyPlan:
    """A privacy mechanism with its parameters for a whole run.

    Every field is a public constant.

    Attributes:
        mechanism: `dp-sgd` or `dp-statistics` at one client, or `client-dp` at the server.
        privacy_unit: What the guarantee is for: `image`, `group` of images, or `client`.
        num_units: Declared number of units of the client, or of clients in the server's cohort.
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


def counts_plan(constants: PublicConstants) -> CountsPlan | None:
    """Return the noise of counts, calibrated to the target where it was not set.

    Noise that was set is raised where the target asks for more.

    Raises:
        ConfigError: No noise meets the target.
        PrivacyError: Noise is neither set nor follows from a target.
    """
    if constants.metrics != "private":
        return None
    rounds, target, delta = constants.counted_rounds, constants.target_epsilon, constants.delta
    pair, matrix, classes = constants.counts_noise, constants.closing_noise, constants.histogram_classes
    divided = len(constants.subgroups)
    if target is not None and (pair is None or matrix is None):
        calibrated = split_counts_noise(
            rounds, target_epsilon=target, delta=delta, num_classes=classes, num_subgroups=divided
        )
        pair, matrix = pair or calibrated[0], matrix or calibrated[1]
    if pair is None or matrix is None:
        raise PrivacyError("the noise of counts is not filled in: build a RunConfig with common.config.loading.parse")
    plan = CountsPlan(rounds, pair, matrix, constants.counted_every, noise_shares=constants.noise_shares)
    if classes is not None:
        scores, calibration = histogram_noise(matrix, classes)
        plan = replace(plan, num_classes=classes, scores_noise_stddev=scores, calibration_noise_stddev=calibration)
    if divided:
        noise = subgroup_noise(matrix, divided)
        plan = replace(plan, subgroups=constants.subgroups, subgroups_noise_stddev=noise)
    factor = 1.0
    # The calibration is for discrete noise. Shares are of another law, so their cost is checked on its own.
    if target is not None and (constants.counts_noise or constants.closing_noise or constants.noise_shares):
        factor = counts_noise(plan.events(), target_epsilon=target, delta=delta)
    # The accountant is told the parameter that the sampler draws exactly, not the one that was asked for.
    noises = {name: getattr(plan, name) for name in _COUNTS_NOISES}
    exact: dict[str, Any] = {name: float(sampled_stddev(factor * of)) for name, of in noises.items() if of is not None}
    return replace(plan, **exact)


def label_noise(constants: PublicConstants, *, sample_rate: float, steps: int) -> float | None:
    """Return the noise of label counts by the public rule.

    It is None if class weights do not depend on labels. Else it is three times the noise of a single release that would
    cost as much as the whole plan. `steps` are those of the whole plan. They matter only where the noise of a step was
    set.

    Raises:
        ConfigError: No noise meets the target.
    """
    if not constants.balanced:
        return None
    if constants.noise_multiplier is None:
        whole = calibrate(1.0, 1, constants.target_epsilon or 0.0, constants.delta)
    else:
        # Steps with noise s and rate q cost about as much as one release with noise s / (q sqrt(steps)).
        whole = constants.noise_multiplier / (sample_rate * math.sqrt(steps))
    return float(sampled_stddev(max(LEAST_COUNTS_NOISE, LABEL_NOISE * whole)))


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
