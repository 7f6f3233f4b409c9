"""Number and noise of the counts in a secure sum."""

from common.errors import PrivacyError
from common.messages.fields import (
    CONFIDENCE_COUNTS,
    CONFUSION,
    CORRECT,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NOISED_SUBGROUP_COUNTS,
    SCORE_COUNTS,
    SUBGROUP_COUNTS,
    WRONG,
)
from common.privacy.counts.counts_plan import CountsPlan
from common.score_histograms import NUM_CONFIDENCE_BINS, NUM_SCORE_BINS


def num_counts(key: str, num_classes: int, num_subgroups: int) -> int:
    """Return how many numbers one kind of counts has.

    >>> num_counts(CONFUSION, 3, 0), num_counts(SUBGROUP_COUNTS, 3, 4), num_counts(CORRECT, 3, 0)
    (9, 8, 1)
    """
    return {
        CONFUSION: num_classes**2,
        NOISED_CONFUSION: num_classes**2,
        SCORE_COUNTS: 2 * num_classes * NUM_SCORE_BINS,
        NOISED_SCORE_COUNTS: 2 * num_classes * NUM_SCORE_BINS,
        CONFIDENCE_COUNTS: 2 * NUM_CONFIDENCE_BINS,
        NOISED_CONFIDENCE_COUNTS: 2 * NUM_CONFIDENCE_BINS,
        SUBGROUP_COUNTS: 2 * num_subgroups,
        NOISED_SUBGROUP_COUNTS: 2 * num_subgroups,
    }.get(key, 1)


def noise_of(key: str, plan: CountsPlan | None) -> tuple[float, int]:
    """Return the noise of one kind of counts and its number of shares.

    Raises:
        PrivacyError: The plan has no noise for them.
    """
    noise = None
    if plan is not None:
        noise = {
            CORRECT: plan.noise_stddev,
            WRONG: plan.noise_stddev,
            NOISED_CONFUSION: plan.closing_noise_stddev,
            NOISED_SCORE_COUNTS: plan.scores_noise_stddev,
            NOISED_CONFIDENCE_COUNTS: plan.calibration_noise_stddev,
            NOISED_SUBGROUP_COUNTS: plan.subgroups_noise_stddev,
        }.get(key)
    # Without this check counts would leave that no event accounts for.
    if plan is None or noise is None:
        raise PrivacyError("counts may be summed only with the noise of the plan")
    return noise, plan.noise_shares
