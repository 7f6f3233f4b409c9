"""Runs that a membership attack compares, one for each epsilon."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from common.config.listed_values import split_list
from common.config.loading import Scalar, parse, resolved
from common.config.schema import RunConfig
from common.data.partitioning.partition import Partition
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError
from common.privacy.mechanisms.registry import NO_PRIVACY, mechanism_named, names_where

# What may differ between runs whose scores lie in one folder.
_FREE = ("output-dir", "resume", "privacy.target-epsilon", "privacy.noise-multiplier", "privacy.mechanism")


@dataclass(frozen=True)
class Curve:
    """Run that is compared with the others.

    Attributes:
        name: `none`, or mechanism and target such as `dp-sgd-8`; names a folder.
        config: Settings of the attacked run.
        epsilon: Bound for one image over the whole run; None without a mechanism.
        delta: Its delta.
    """

    name: str
    config: RunConfig
    epsilon: float | None
    delta: float

    @property
    def label(self) -> str:
        """Text for a legend."""
        target = self.config.privacy.target_epsilon
        if self.epsilon is None:
            return "no privacy"
        return f"epsilon {target:g}" if self.config.is_local_dp else f"epsilon {target:g} a client"


def curves_of(settings: Mapping[str, Scalar], compare: str) -> tuple[Curve, ...]:
    """Return the runs that a comma-separated list names.

    Args:
        settings: Complete settings, key -> value. This function sets epsilon, noise and `privacy.metrics`.
        compare: `none` or target epsilons of the whole run, one curve each, in this order.

    Raises:
        ConfigError: `compare` is empty, repeats an entry or has another entry; a setting is wrong or leaves
            nothing to attack.
    """
    curves = tuple(_curve(settings, word) for word in split_list(compare))
    names = [curve.name for curve in curves]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--compare {compare!r}: name at least one, and none twice, such as none,8,2,1")
    _check(curves[0].config)
    return curves


def _curve(settings: Mapping[str, Scalar], word: str) -> Curve:
    common: dict[str, Scalar] = {"privacy.noise-multiplier": "", "privacy.metrics": "none"}
    own = mechanism_named(str(settings["privacy.mechanism"]))
    method = str(settings["training.method"] or own.methods[0])
    # All curves are of one method. Rounds stay unwritten, as in the folders of earlier attacks.
    if method == "statistics":
        common["training.method"] = method
    if word == NO_PRIVACY:
        changed = common | {"privacy.mechanism": NO_PRIVACY}
        return Curve(NO_PRIVACY, parse({**settings, **changed}), None, 0.0)
    try:
        epsilon = float(word)
    except ValueError:
        raise ConfigError(f"--compare: {word!r} is neither none nor a number, such as none,8,2,1") from None
    at_client = (name for name in names_where("noise_at_client") if method in mechanism_named(name).methods)
    kind = own.name if own.private else next(at_client)
    config = parse({**settings, **common, "privacy.mechanism": kind, "privacy.target-epsilon": epsilon})
    return Curve(f"{kind}-{epsilon!r}".removesuffix(".0"), config, *_of_one_image(config, epsilon))


def _of_one_image(config: RunConfig, epsilon: float) -> tuple[float, float]:
    """Return epsilon and delta for one image.

    Under `client-dp` one image replaces its client's update by another, so one client leaves and one joins.
    """
    delta = config.privacy.delta
    return (epsilon, delta) if config.is_local_dp else (2 * epsilon, min(1.0, (1 + exp(epsilon)) * delta))


def _check(config: RunConfig) -> None:
    """Refuse runs whose final global model is not what this attack is on."""
    if config.data.source == OWN_IMAGES:
        raise ConfigError(
            f"data.source={OWN_IMAGES!r}: the attack trains anew on all images, which lie at clients here"
        )
    if config.model.personal:
        raise ConfigError("model.personal keeps tensors at clients, and the attack is on what all share: leave it out")
    if config.privacy.unit == "group":
        raise ConfigError("privacy.unit='group': the attack asks about single images, use privacy.unit='image'")
    if config.stopping.patience or config.stopping.keep == "best":
        raise ConfigError(
            "stopping.patience and stopping.keep: the attack is on the last round's model, leave them out"
        )


def check_plans(curve: Curve, partition: Partition) -> None:
    """Make every client's plan before anything is trained.

    Settings without a plan are then refused early.

    Raises:
        ConfigError: Some client has no plan.
    """
    if curve.config.private:
        for size in np.unique(partition.num_units).tolist():
            curve.config.plan(size)


def shared_settings(curves: Sequence[Curve]) -> dict[str, Scalar]:
    """Return the settings that all runs of one folder must share.

    Args:
        curves: From `curves_of`.
    """
    flat = resolved(curves[0].config)
    return {key: value for key, value in flat.items() if key not in _FREE and not key.startswith("system.")}
