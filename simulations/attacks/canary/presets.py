"""Preset audits of one client with a canary and no other images.

In this configuration a fault shows soonest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config.loading import Scalar, defaults, override, parse
from simulations.attacks.canary.trial import AdversaryKind, Experiment
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_images import Images

_FEATURES = 16
_CLASSES = ("a", "b")
_NUM_UNITS = 1000
_EVERY: dict[str, Scalar] = {
    "num-clients": 1,
    "num-rounds": 1,
    "privacy.metrics": "none",
    "privacy.max-grad-norm": 0.5,
    "training.learning-rate": 1e-4,
    "training.batch-size": _NUM_UNITS,
    "training.local-epochs": 4,
    "privacy.noise-multiplier": 1.0,
}


@dataclass(frozen=True)
class Preset:
    """A named audit.

    Attributes:
        about: Description for users.
        trials: Number of trainings, half of them with the canary.
        settings: Settings that differ from the defaults.
        adversary: What the adversary sees.
    """

    about: str
    trials: int
    settings: Mapping[str, Scalar]
    adversary: AdversaryKind = "final-model"


PRESETS: Mapping[str, Preset] = {
    "gate": Preset("4 steps of noise 1, every unit in every step: epsilon 10; seconds", 1_000, _EVERY),
    "deep": Preset("the same, 20,000 trainings; minutes", 20_000, _EVERY),
    "deep-sampled": Preset(
        "50 steps with a tenth of the units in each, 20,000 trainings; minutes",
        20_000,
        _EVERY | {"training.batch-size": _NUM_UNITS // 10, "training.local-epochs": 5, "privacy.noise-multiplier": 0.7},
        "single-steps",
    ),
}


def preset_experiment(name: str, folder: Path) -> Experiment:
    """Return the attack of a preset.

    Args:
        name: A key of `PRESETS`.
        folder: Scratch folder for ledgers.
    """
    config = parse(override(defaults(), dict(PRESETS[name].settings)))
    no_images = Images.of(np.zeros((0, _FEATURES), dtype=np.float32), np.zeros(0, dtype=np.int64), held_out=0)
    return Experiment(ClientHarness(config, _CLASSES, no_images, _NUM_UNITS, folder), "dirac", PRESETS[name].adversary)
