"""The check of a client's private training on a device."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from client.training.trainer import Trainer
from common.arrays import to_vector
from common.data.client_dataset import Shard
from common.models.initialization import initial_arrays
from simulations.benchmarks.stopwatch import seconds_of
from simulations.device_check.examined import CLASSES, STEPS, config_of
from simulations.device_check.findings import Finding
from simulations.device_check.memory import forget_peak, peak_mb
from simulations.estimates import random_shard
from simulations.harness.noiseless_round import noiseless_round

_AGREEMENT = 1e-3
# Rounds are repeated for so long, in seconds.
_LEAST = 1.0


def check_steps(
    part: str, settings: dict[str, Any], device: str, *, shape: tuple[int, ...], batch: int
) -> Iterator[Finding]:
    """Compare a private round of the device with the processor's.

    The private steps of both are timed.

    Args:
        part: Name of the network.
        settings: Its settings.
        device: Where it is trained.
        shape: Shape of an image, or of its features.
        batch: Expected images of a step.
    """
    shard = random_shard(shape, len(CLASSES), STEPS * batch)
    forget_peak(device)
    here, beside = (_Rounds(settings, shard, batch=batch, device=name) for name in (device, "cpu"))
    update, right = here.update(), beside.update()
    distance = float(np.linalg.norm(update - right) / np.linalg.norm(right))
    yield Finding(part, "distance of a round's update", distance, _AGREEMENT)
    rate = here.steps_a_second()
    yield Finding(part, f"private steps/s, batches of {batch}", rate, processor=beside.steps_a_second())
    peak = peak_mb(device)
    if peak is not None:
        yield Finding(part, "peak MB of the device", peak)
    without = _Rounds(settings, shard, batch=batch, device=device, private=False)
    yield Finding(part, "steps/s without privacy", without.steps_a_second())


class _Rounds:
    """Rounds of one client's training on made-up images."""

    def __init__(
        self, settings: dict[str, Any], shard: Shard, *, batch: int, device: str, private: bool = True
    ) -> None:
        config, shape = config_of(settings, batch=batch, device=device, private=private), shard.train_inputs.shape[1:]
        self._trainer, self._shard = Trainer(config, shape, CLASSES), shard
        self._start = initial_arrays(config, shape, CLASSES)
        self._plan = config.plan(len(shard.train_labels)) if private else None

    def update(self) -> np.ndarray:
        """Return the change of all weights, (p,) float64, without noise."""
        trained = noiseless_round(self._trainer, self._start, self._shard, self._plan)
        return np.asarray(to_vector(trained, trained) - to_vector(self._start, self._start))

    def steps_a_second(self) -> float:
        """Return the rate of steps as users take them."""
        return STEPS / seconds_of(self._train, least=_LEAST)[0]

    def _train(self) -> None:
        self._trainer.train(self._start, self._shard, name="client-0", server_round=1, plan=self._plan)
