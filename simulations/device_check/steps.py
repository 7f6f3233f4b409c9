"""The check of a client's private training on a device."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from client.training.dp_sgd import FreshStreams
from client.training.trainer import Trainer
from common.arrays import Arrays, to_vector
from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.models.initialization import initial_arrays
from simulations.device_check.findings import Finding
from simulations.device_check.gradients import CLASSES
from simulations.device_check.memory import forget_peak, peak_mb, wait_for
from simulations.estimates import random_shard
from simulations.harness.harness_streams import Repeated, WithoutNoise

_AGREEMENT = 1e-3
# Steps that the processor takes. It computes one image at a time.
_FEW_STEPS = 2


def config_of(settings: dict[str, Any], *, batch: int, steps: int, device: str, private: bool = True) -> RunConfig:
    """Return a run whose clients have two batches of images and take `steps` steps a round.

    Args:
        settings: Settings of the network.
        batch: Images of a step, the expected number where it is private.
        steps: Steps of a round, an even number.
        device: Where networks are trained.
        private: Train under DP-SGD.
    """
    chosen = {
        "num-clients": 2,
        "training.learning-rate": 0.01,
        "training.local-epochs": max(1, steps // 2),
        "training.batch-size": batch,
        "system.device": device,
        **settings,
    }
    mechanism = {"privacy.noise-multiplier": 1.0, "privacy.max-grad-norm": 1.0}
    return parse(override(defaults(), chosen | (mechanism if private else {"privacy.mechanism": "none"})))


def check_steps(
    part: str, settings: dict[str, Any], device: str, *, shape: tuple[int, ...], batch: int, steps: int
) -> Iterator[Finding]:
    """Compare a private round's update with the processor's, and time private steps of both.

    Args:
        part: Name of the network.
        settings: Its settings.
        device: Where it is trained.
        shape: Shape of an image, or of its features.
        batch: Expected images of a step.
        steps: Timed steps on the device.
    """
    shard = random_shard(shape, len(CLASSES), 2 * batch)
    few = [config_of(settings, batch=batch, steps=_FEW_STEPS, device=name) for name in (device, "cpu")]
    # Without noise, which would hide a difference, and with the same batches.
    updates, seconds = zip(*(_round(config, shard, shape, quiet=True) for config in few), strict=True)
    distance = float(np.linalg.norm(updates[0] - updates[1]) / np.linalg.norm(updates[1]))
    yield Finding(part, "distance of a round's update", distance, _AGREEMENT)
    forget_peak(device)
    private, plain = (
        max(steps, _FEW_STEPS) / _round(config, shard, shape)[1]
        for config in (
            config_of(settings, batch=batch, steps=steps, device=device, private=private) for private in (True, False)
        )
    )
    yield Finding(part, f"private steps/s, batches of {batch}", private, processor=_FEW_STEPS / seconds[1])
    yield Finding(part, "plain steps/s", plain)
    peak = peak_mb(device)
    if peak is not None:
        yield Finding(part, "peak MB of the device", peak)


def _round(config: RunConfig, shard: Shard, shape: tuple[int, ...], *, quiet: bool = False) -> tuple[np.ndarray, float]:
    """Return a round's update (p,) float64, and its seconds."""
    trainer = Trainer(config, shape, CLASSES)
    start = initial_arrays(config, shape, CLASSES)
    plan = config.plan(len(shard.train_labels)) if config.mechanism.clips_units else None

    def train() -> Arrays:
        streams = WithoutNoise(Repeated("sampling", [])) if quiet else FreshStreams()
        return trainer.train(start, shard, name="client-0", server_round=1, plan=plan, streams=streams)

    # The first round also loads the network, and holds its gradients in slots against those of one image at a time.
    train()
    started = time.perf_counter()
    trained = train()
    wait_for(config.system.device)
    seconds = time.perf_counter() - started
    return to_vector(trained, trained) - to_vector(start, start), seconds
