"""Report of a membership attack, in numbers and in words."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from common.config.loading import resolved
from simulations.attacks.membership.curves import Curve
from simulations.attacks.membership.lira import likelihood_ratios
from simulations.attacks.membership.roc import Rate, Roc, auc_of, rate_at, roc_of
from simulations.attacks.membership.training import Scored

LEVELS = (0.001, 0.01)
ATTACK = "LiRA, online, every model attacked with the others as shadows (Carlini et al. 2022, arXiv:2112.03570)"
_SURE = 3.0  # standard deviations of chance


@dataclass(frozen=True)
class Found:
    """Result of the attack on one curve.

    Attributes:
        curve: The attacked run.
        models: Number of attacked models.
        images: Number of images that are members of some models and not of others.
        roc: Error rates of every threshold, over all models and images.
        auc: Area under the curve.
        auc_stddev: Standard deviation of `auc` for an attack that guesses.
        rates: True-positive rates at the false-positive rates `LEVELS`.
        accuracy: Accuracy on held-out images, the mean over models.
        seconds: Training time of all models together.
    """

    curve: Curve
    models: int
    images: int
    roc: Roc
    auc: float
    auc_stddev: float
    rates: tuple[Rate, ...]
    accuracy: float
    seconds: float

    @property
    def telling(self) -> Rate | None:
        """The rate at the lowest level that there are images enough for."""
        return next((rate for rate in self.rates if rate.enough), None)

    @property
    def beyond_chance(self) -> bool:
        """True if members are told from others better than chance explains."""
        rate = self.telling
        return self.auc - 0.5 > _SURE * self.auc_stddev or (rate is not None and rate.low > 2 * rate.fpr)

    @property
    def within(self) -> bool:
        """True if nothing contradicts the guarantee."""
        return all(rate.within for rate in self.rates)


def judge(curve: Curve, scored: Sequence[Scored], members: np.ndarray) -> Found:
    """Judge every model by all the others.

    Args:
        curve: The attacked run.
        scored: Scores of each model.
        members: (models, images) bool, whether the model was trained on the image.
    """
    evidence = likelihood_ratios(np.array([one.scores for one in scored]), members).ravel()
    roc = roc_of(evidence, members.ravel())
    auc, spread = auc_of(evidence, members.ravel())
    return Found(
        curve,
        len(members),
        members.shape[1],
        roc,
        auc,
        spread,
        tuple(rate_at(roc, level, epsilon=curve.epsilon, delta=curve.delta) for level in LEVELS),
        accuracy=float(np.mean([one.accuracy for one in scored])),
        seconds=sum(one.seconds for one in scored),
    )


def verdict(found: Found) -> str:
    """Return one plain sentence.

    Says what was found, what chance would give, and never that a model is safe.
    """
    rate = found.telling
    if not found.within:
        return (
            "the attack finds MORE than epsilon allows: repeat with more --models, and if it stays, the guarantee is "
            "broken"
        )
    if rate is None:
        return "too few images to tell: raise --models"
    if not found.beyond_chance:
        return "this attack tells training images from others no better than guessing"
    if rate.low <= 2 * rate.fpr:
        return f"this attack guesses a little better than chance (AUC {found.auc:.3f}), and is seldom sure"
    return (
        f"wrong about 1 other image in {round(1 / rate.fpr):,}, this attack names {100 * rate.tpr:.1f} % of the "
        f"training images: {rate.tpr / rate.fpr:.0f} times what guessing would"
    )


def as_json(results: Sequence[Found], seed: int) -> dict[str, Any]:
    """Return the results as plain values.

    A plotted curve is thinned to what can be seen.
    """
    return {
        "attack": ATTACK,
        "attacked": "the final global model; the attacker knows partition, seed and all images but their membership",
        "models": results[0].models,
        "images": results[0].images,
        "seed": seed,
        "simulation_only": True,
        "interval": "Clopper-Pearson, 95 %; decisions taken as independent, threshold as given",
        "curves": [_curve_json(found) for found in results],
        "versions": {"bract": version("bract"), "numpy": np.__version__, "python": platform.python_version()},
    }


def _curve_json(found: Found) -> dict[str, Any]:
    fpr, tpr = thinned(found.roc)
    return {
        "name": found.curve.name,
        "epsilon_of_one_image": found.curve.epsilon,
        "delta_of_one_image": found.curve.delta if found.curve.epsilon is not None else None,
        "verdict": verdict(found),
        "auc": found.auc,
        "auc_stddev_by_chance": found.auc_stddev,
        "rates": [asdict(rate) for rate in found.rates],
        "members": found.roc.num_members,
        "others": found.roc.num_others,
        "accuracy": found.accuracy,
        "training_seconds": found.seconds,
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
        "config": resolved(found.curve.config),
    }


def thinned(roc: Roc) -> tuple[np.ndarray, np.ndarray]:
    """Return points of a curve spread evenly over a logarithmic axis.

    The rates have at most 400 entries.
    """
    wanted = np.geomspace(1, max(2, roc.num_others), 400)
    at = np.unique(np.searchsorted(roc.false_alarms, wanted, side="right") - 1)
    return roc.fpr[at], roc.tpr[at]
