"""Noised sums over a client's features."""

import numpy as np

from client.training.dp_sgd import PrivateStreams
from common.arrays import Arrays
from common.errors import PrivacyError
from common.privacy.plan import PrivacyPlan
from common.statistics.sums import StatisticsKind, from_contribution, statistics_of, to_contribution, unit_factors


def clipped_contribution(
    kind: StatisticsKind,
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    plan: PrivacyPlan,
    *,
    units: np.ndarray,
) -> np.ndarray:
    """Return a client's contribution, clipped by unit, without noise.

    The result is (p,) float64, and may leave only with noise. Arguments are as in `private_statistics`.

    Raises:
        PrivacyError: The plan is for more than one release.
    """
    if (plan.sample_rate, plan.steps_per_round, plan.num_rounds) != (1.0, 1, 1):
        raise PrivacyError("sums over features are released once, and the plan is for something else")
    # By unit and not by image: a patient of many images must not count for as many patients.
    factors = unit_factors(kind, features, labels, units, bound=plan.max_grad_norm)
    # A warning about a non-finite image would tell that it is there.
    with np.errstate(all="ignore"):
        sums = statistics_of(kind, features, labels, num_classes, factors)
    return to_contribution(kind, sums)


def private_statistics(
    kind: StatisticsKind,
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    plan: PrivacyPlan,
    streams: PrivateStreams,
    *,
    units: np.ndarray,
) -> Arrays:
    """Sum a client's features with the noise of a plan.

    Guarantee: adding or removing one unit moves the contribution, all tensors together, by at most
    `plan.max_grad_norm` before noise of `plan.noise_stddev` is added to each of its values. The release is one
    `plan.event(1)`. What is done to the noised contribution afterwards depends on public constants only.

    Args:
        kind: What is summed.
        features: (n, d) float32; n may be 0.
        labels: (n,) int64.
        num_classes: Number of classes.
        plan: Plan of the whole run, which must hold one release.
        streams: Fresh streams, for this message alone.
        units: (n,) int64, equal for images that are clipped together.

    Returns:
        The tensors of `statistics_of`, noised.

    Raises:
        PrivacyError: The plan is for more than one release.
    """
    contribution = clipped_contribution(kind, features, labels, num_classes, plan, units=units)
    noised = streams.release(contribution, plan)
    return from_contribution(kind, noised, num_classes, features.shape[1])
