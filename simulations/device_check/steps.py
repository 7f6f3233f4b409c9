"""The check of a client's private training on a device."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from client.training.trainer import Trainer
from common.arrays import Arrays, to_vector
from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.models.initialization import initial_arrays
from simulations.benchmarks.stopwatch import seconds_of
from simulations.device_check.findings import Finding
from simulations.device_check.gradients import CLASSES
from simulations.device_check.memory import forget_peak, peak_mb
from simulations.estimates import random_shard
from simulations.harness.harness_streams import Repeated, WithoutNoise

_AGREEMENT = 1e-3
_STEPS = 2
# Rounds are repeated for so long, in seconds.
_LEAST = 1.0


def config_of(settings: dict[str, Any], *, batch: int, device: str, private: bool = True) -> RunConfig:
    """Return a run whose clients have two batches of images and take `_STEPS` steps a round.

    Args:
        settings: Settings of the network.
        batch: Images of a step, the expected number where it is private.
        device: Where networks are trained.
        private: Train under DP-SGD.
    """
    chosen = {
        "num-clients": 2,
        "training.learning-rate": 0.01,
        "training.local-epochs": 1,
        "training.batch-size": batch,
        "system.device": device,
        **settings,
    }
    mechanism = {"privacy.noise-multiplier": 1.0, "privacy.max-grad-norm": 1.0}
    return parse(override(defaults(), chosen | (mechanism if private else {"privacy.mechanism": "none"})))


def check_steps(
    part: str, settings: dict[str, Any], device: str, *, shape: tuple[int, ...], batch: int
) -> Iterator[Finding]:
    """Compare a private round's update with the processor's, and time private steps of both.

    Args:
        part: Name of the network.
        settings: Its settings.
        device: Where it is trained.
        shape: Shape of an image, or of its features.
        batch: Expected images of a step.
    """
    shard = random_shard(shape, len(CLASSES), _STEPS * batch)
    forget_peak(device)
    here, beside = (_Rounds(config_of(settings, batch=batch, device=name), shard, shape) for name in (device, "cpu"))
    update, reference = here.update(), beside.update()
    yield Finding(part, "distance of a round's update", float(_norm(update - reference) / _norm(reference)), _AGREEMENT)
    rate = here.steps_a_second()
    yield Finding(part, f"private steps/s, batches of {batch}", rate, processor=beside.steps_a_second())
    peak = peak_mb(device)
    if peak is not None:
        yield Finding(part, "peak MB of the device", peak)
    without = _Rounds(config_of(settings, batch=batch, device=device, private=False), shard, shape)
    yield Finding(part, "steps/s without privacy", without.steps_a_second())


class _Rounds:
    """Rounds of one client's training."""

    def __init__(self, config: RunConfig, shard: Shard, shape: tuple[int, ...]) -> None:
        self._trainer, self._shard = Trainer(config, shape, CLASSES), shard
        self._start = initial_arrays(config, shape, CLASSES)
        self._plan = config.plan(len(shard.train_labels)) if config.mechanism.clips_units else None

    def update(self) -> np.ndarray:
        """Return a round's update (p,) float64 with repeated batches, without noise, which would hide a difference."""
        trained = self._train(WithoutNoise(Repeated("sampling", [])))
        return np.asarray(to_vector(trained, trained) - to_vector(self._start, self._start))

    def steps_a_second(self) -> float:
        """Return the rate of steps as users take them."""
        return _STEPS / seconds_of(lambda: self._train(FRESH_STREAMS), least=_LEAST)[0]

    def _train(self, streams: FreshStreams) -> Arrays:
        return self._trainer.train(
            self._start, self._shard, name="client-0", server_round=1, plan=self._plan, streams=streams
        )


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))
