"""Choice of the images of a labelled source that show where a model fails."""

from dataclasses import dataclass

import numpy as np

from common.inference.evaluation.scored_images import ScoredImages


@dataclass(frozen=True, eq=False)
class DoubtfulImages:
    """Rows of scored images, the most telling first.

    Attributes:
        mistakes: Wrongly classified images, (k,) int64, by falling probability of the predicted class.
        unsure: Other images, (m,) int64, by rising probability of the predicted class.
    """

    mistakes: np.ndarray
    unsure: np.ndarray


def choose_doubtful(scored: ScoredImages, most: int) -> DoubtfulImages:
    """Return the most confident mistakes and the least certain images.

    Each has up to `most` images, and no image is in both.
    """
    wrong = np.flatnonzero(scored.predicted != scored.labels)
    mistakes = wrong[np.argsort(-scored.confidence[wrong], kind="stable")][:most]
    others = np.setdiff1d(np.arange(len(scored)), mistakes)
    return DoubtfulImages(mistakes, others[np.argsort(scored.confidence[others], kind="stable")][:most])
