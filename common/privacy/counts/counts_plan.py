"""Plans of counts from public constants."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from common.errors import PrivacyError
from common.privacy.calibration import (
    LEAST_COUNTS_NOISE,
    calibrate,
    counts_noise,
    histogram_events,
    histogram_noise,
    split_counts_noise,
    subgroup_noise,
)
from common.privacy.counts.discrete_gaussian import sampled_stddev
from common.privacy.events import CountsEvent
from common.privacy.public_constants import PublicConstants

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
class CountsPlan:
    """Counts of held-out units that leave a client during a run.

    Every field is a public constant. The pair (correct, wrong) leaves in at most `num_rounds` rounds, those whose
    number is a multiple of `every`, under discrete Gaussian noise of parameter `noise_stddev`; one unit changes one
    count by 1. `closing_noise_stddev` is the same for the confusion matrix, which leaves once at the end. Where
    `num_classes` is not None, score histograms, one for each class, and the calibration histogram of the likeliest
    class leave with it, each under noise of its own. Where `subgroups` are named, so do right and wrong predictions of
    each: one unit changes one of these counts by 1. `noise_shares` is that of the plan.
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
