"""Counts of predictions with discrete Gaussian noise.

Under DP these counts are the only figures that leave a client.
"""

import numpy as np

from common.errors import PrivacyError
from common.metrics import Counts, NoisedCounts
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.counts.discrete_gaussian import ByteStream, discrete_gaussian
from common.score_histograms import ScoreHistograms
from common.subgroup_counts import SubgroupCounts


def noised_pair(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """Return the number of right and of wrong predictions, with noise in each.

    Guarantee: adding or removing one unit changes one of the two true counts by 1, so the release is one
    `CountsEvent(noise_stddev, 1)`. Both results may be negative. `counts` must hold exactly one prediction for each
    unit, and `stream` must be fresh and used for this noise only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    # Right and wrong, not right and total: one unit would change both of those.
    right = int(np.trace(counts.confusion))
    return _noised(np.array([right, counts.num_examples - right]), noise_stddev, stream)


def noised_matrix(counts: Counts, *, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    """Return the confusion matrix, with noise in each cell.

    Guarantee and conditions are those of `noised_pair`, since one unit counts in one cell only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
    """
    return _noised(counts.confusion, noise_stddev, stream)


def noised_histograms(
    exact: ScoreHistograms, plan: CountsPlan, *, of_scores: ByteStream, of_confidence: ByteStream
) -> ScoreHistograms:
    """Return histograms of scores and confidence with the plan's noise.

    Guarantee: adding or removing one unit changes one count of each class's histogram by 1, and one count of confidence
    by 1. So the two releases are the second and third of `plan.closing_events()`. Each has a fresh stream of its own.

    Raises:
        ConfigError: A standard deviation cannot be sampled exactly.
        PrivacyError: The plan is of another number of classes, or has no noise for histograms.
    """
    # With other classes one unit would change more counts than the event says.
    if plan.num_classes != len(exact.scores):
        raise PrivacyError("histograms may leave only as the plan has them")
    if plan.scores_noise_stddev is None or plan.calibration_noise_stddev is None:
        raise PrivacyError("histograms may leave with noise only, and the plan has no noise for them")
    scores = _noise_added(exact.scores, plan.scores_noise_stddev, of_scores)
    return ScoreHistograms(scores, _noise_added(exact.confidence, plan.calibration_noise_stddev, of_confidence))


def noised_subgroups(exact: SubgroupCounts, plan: CountsPlan, *, stream: ByteStream) -> SubgroupCounts:
    """Return right and wrong predictions of each subgroup with the plan's noise.

    Guarantee: adding or removing one unit changes one count by 1, so the release is the last of
    `plan.closing_events()`. Also a subgroup without units has noise. `stream` must be fresh and used for this only.

    Raises:
        ConfigError: The standard deviation cannot be sampled exactly.
        PrivacyError: The plan has other subgroups, or no noise for them.
    """
    if len(plan.subgroups) != len(exact.cells):
        raise PrivacyError("counts by subgroup may leave only as the plan has them")
    if plan.subgroups_noise_stddev is None:
        raise PrivacyError("counts by subgroup may leave with noise only, and the plan has no noise for them")
    return SubgroupCounts(_noise_added(exact.cells, plan.subgroups_noise_stddev, stream))


def _noised(exact: np.ndarray, noise_stddev: float, stream: ByteStream) -> NoisedCounts:
    return NoisedCounts(_noise_added(exact, noise_stddev, stream))


def _noise_added(exact: np.ndarray, noise_stddev: float, stream: ByteStream) -> np.ndarray:
    # Discrete noise. The last bits of floating-point noise on a count would reveal the count.
    noise = discrete_gaussian(exact.size, noise_stddev=noise_stddev, stream=stream)
    return np.asarray(exact.astype(np.int64) + noise.reshape(exact.shape))
