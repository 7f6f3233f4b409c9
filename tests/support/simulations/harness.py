"""Tiny configurations on the bench of the audit: synthetic images, small networks, plans that cost no calibration."""

from pathlib import Path

import numpy as np

from common.config.loading import Scalar, defaults, override, parse
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_images import Images
from simulations.privacy_tests.check import PrivacyTestReport

CLASSES = ("a", "b", "c")
BASE: dict[str, Scalar] = {
    "num-rounds": 2,
    "num-clients": 20,
    "data.image-size": 32,
    "model.weights": "random",
    "training.batch-size": 20,
    "privacy.noise-multiplier": 1.0,
    "privacy.max-grad-norm": 0.5,
}
HEAD: dict[str, Scalar] = {}
NETWORK: dict[str, Scalar] = {"model.backbone": "timm:test_resnet"}
SUMS: dict[str, Scalar] = {"privacy.mechanism": "dp-statistics"}
CLIENT_DP: dict[str, Scalar] = {"privacy.mechanism": "client-dp", "privacy.delta": 1e-4, "privacy.clipping-norm": 1.0}
NUM_UNITS = 40  # with batches of 20: a sample rate of a half, two steps a round
# Mode -> settings; every way of tuning, features cached or not, images alone or in groups.
MODES: dict[str, dict[str, Scalar]] = {
    "head": HEAD,
    "head of groups": {"privacy.unit": "group"},
    "head, every image in every step": {"training.batch-size": NUM_UNITS},
    "sums": SUMS,
    "sums of groups": SUMS | {"privacy.unit": "group"},
    "mlp head": NETWORK | {"model.head": "mlp"},
    "head, uncached": NETWORK | {"model.tuning": "head", "training.augmentation": "flip"},
    "bias": NETWORK | {"model.tuning": "bias"},
    "norm": NETWORK | {"model.tuning": "norm"},
    "norm of groups, in chunks": NETWORK
    | {"model.tuning": "norm", "privacy.unit": "group", "system.physical-batch-size": 4},
    "lora": NETWORK | {"model.tuning": "lora"},
    "last": NETWORK | {"model.tuning": "last:1"},
    "full": NETWORK | {"model.tuning": "full"},
    "cnn": {"model.backbone": "cnn", "model.weights": "", "data.image-size": 8},
}


def harness_of(folder: Path, settings: dict[str, Scalar], *, train: int = 3, held_out: int = 3) -> ClientHarness:
    """A bench over a few made-up images, shaped as the configuration wants them."""
    config, rng = parse(override(defaults(), BASE | settings)), np.random.default_rng(11)
    count = train + held_out
    if config.needs_no_torch:
        # The sums have as many values as the square of the features.
        inputs = rng.standard_normal((count, 48 if config.takes_statistics else 512)).astype(np.float32)
    elif config.caches_features:
        inputs = rng.standard_normal((count, 96)).astype(np.float32)
    else:
        side = config.data.image_size or 8
        inputs = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    images = Images.of(inputs, np.arange(count) % len(CLASSES), held_out=held_out)
    return ClientHarness(config, CLASSES, images, NUM_UNITS, folder).with_settings()


def said(report: PrivacyTestReport) -> str:
    """What failed in a report, for a person to read."""
    return "\n".join(f"{report.test}: {check.name}: {check.seen}" for check in report.failed) or report.test
