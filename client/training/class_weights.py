"""Weights of the classes in a client's training loss."""

import numpy as np

from common.config.sections import listed_weights
from common.errors import ConfigError, PrivacyError

# A balanced weight is never outside of this range. A class with one image would dominate every step.
_SMALLEST, _LARGEST = 0.1, 10.0


def check_class_weights(setting: str, num_classes: int) -> None:
    """Refuse a list of weights that does not have one weight for each class.

    Raises:
        ConfigError: The list is longer or shorter than the list of classes.
    """
    given = len(listed_weights(setting))
    if given not in (0, num_classes):
        raise ConfigError(f"training.class-weights has {given} weights, and there are {num_classes} classes")


def balanced_weights(labels: np.ndarray, *, private: bool) -> tuple[float, ...]:
    """Return class weights that are inversely proportional to the number of a class's images.

    They are 1 on average over the images, before they are cut to the range from 0.1 to 10. Labels are (n,) int64. The
    result ends with the class of the largest label, and is empty without labels.

    Raises:
        PrivacyError: Weights would follow from exact counts in `private` training.
    """
    # One image would change the weight, and so the gradient, of every other image. No clip bounds that.
    if private:
        raise PrivacyError("class weights may not follow from exact counts of labels under this mechanism")
    counts = np.bincount(labels)
    weights = len(labels) / (max(1, np.count_nonzero(counts)) * np.maximum(counts, 1))
    return tuple(np.clip(weights, _SMALLEST, _LARGEST).tolist())
