"""Weights of the classes in a client's training loss."""

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from common.config.listed_values import listed_weights
from common.data.client_dataset import Shard
from common.errors import ConfigError, PrivacyError
from common.privacy.plan import PrivacyPlan

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


def noised_label_counts(shard: Shard, num_classes: int, plan: PrivacyPlan, streams: FreshStreams) -> np.ndarray:
    """Count the training units of each label, with the plan's noise.

    The result is (classes,) int64, and counts may be negative. Guarantee: adding or removing one unit changes one true
    count by 1, so a call is one event of `plan.label_events()`. The weights of all rounds must follow from one call.

    Raises:
        PrivacyError: The plan has no noise for label counts.
    """
    # One image of each unit, so that a unit of several images changes one count by 1 and no more.
    labels = shard.train_labels[shard.training_votes]
    return streams.release_labels(np.bincount(labels, minlength=num_classes), plan)


def label_counts_of(shard: Shard, num_classes: int, plan: PrivacyPlan | None) -> np.ndarray | None:
    """Draw the label counts of a run that no ledger charges.

    They are None where its plan has none.
    """
    if plan is None or not plan.label_events():
        return None
    return noised_label_counts(shard, num_classes, plan, FRESH_STREAMS)


def balanced_weights(counts: np.ndarray, *, smallest_count: float = 1.0) -> tuple[float, ...]:
    """Return class weights that are inversely proportional to the number of a class's images.

    They are 1 on average over the images, before they are cut to the range from 0.1 to 10. Counts are (classes,) and
    may be noised. A class counts as at least `smallest_count`, so that noise around zero is not taken for a rare class.
    """
    known = np.maximum(counts, 0)
    shares = 1.0 / np.maximum(known, smallest_count)
    there = float((known * shares).sum())
    # Without any image, or with noise alone, there is nothing to balance.
    if there <= 0:
        return (1.0,) * len(counts)
    return tuple(np.clip(known.sum() / there * shares, _SMALLEST, _LARGEST).tolist())


def private_weights(label_counts: np.ndarray | None, plan: PrivacyPlan) -> tuple[float, ...]:
    """Return balanced class weights that follow from noised counts alone.

    Raises:
        PrivacyError: There are no noised counts, or the plan does not charge them.
    """
    # From exact counts, one image would change the weight, and so the gradient, of every other image. No clip bounds
    # that.
    if label_counts is None or plan.label_noise_stddev is None:
        raise PrivacyError("class weights may follow from noised and charged counts of labels only, and there are none")
    return balanced_weights(label_counts, smallest_count=max(1.0, plan.label_noise_stddev))
