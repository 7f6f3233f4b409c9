"""Local training of a network with torch, plain and under differential privacy."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from client.training.augmentation import augment, quarter_turns, view_seeds
from client.training.dp_sgd import PrivateStreams, UnitRows, private_steps
from client.training.head_sgd import shuffled_batches
from client.training.per_example_gradients import (
    Examples,
    gradients_in_slots,
    gradients_one_by_one,
    loss_sum,
    providers_agree,
)
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.models.classifier import AnyNetwork, load_arrays, trained_arrays
from common.privacy.clipping import clipped_sum
from common.privacy.plan import PrivacyPlan

_log = logging.getLogger("bract.client")
_CHUNK = 64
_SLOTS_ON_ACCELERATOR = 16


class Rows:
    """A client's training rows as one round sees them.

    Args:
        images: (n, ...) features, or (n, side, side, channels) uint8; n may be 0.
        labels: (n,) int64.
        digests: (n, 32) uint8, content digests.
        units: (n,) int64, equal for images that are clipped together under DP; every image alone if
            left out.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, digests: np.ndarray, units: np.ndarray | None = None
    ) -> None:
        self.images, self.labels, self.digests = images, labels, digests
        self.units = np.arange(len(labels)) if units is None else units

    def batch(self, network: AnyNetwork, batch: np.ndarray, settings: LocalSettings, *, step: int) -> Examples:
        """One step's examples: views drawn, turned if the auxiliary task is on, prepared, on the device."""
        device = next(network.parameters()).device
        seeds = np.zeros(len(batch), dtype=np.int64)
        if settings.augmentation or settings.rotation_weight:
            seeds = view_seeds(self.digests[batch], stream=settings.stream, step=step)
        images = augment(self.images[batch], seeds, settings.augmentation)
        turned, turns = None, np.zeros(len(batch), dtype=np.int64)
        if settings.rotation_weight:
            pixels, turns = quarter_turns(images, seeds) if len(batch) else (images, turns)
            turned = network.prepare(pixels).to(device)
        return Examples(
            network.prepare(images).to(device),
            torch.from_numpy(self.labels[batch]).to(device),
            turned,
            torch.from_numpy(turns).to(device),
        )


def train_network(
    network: AnyNetwork, arrays: Arrays, rows: Rows, settings: LocalSettings, rng: np.random.Generator
) -> Arrays:
    """One round of mini-batch training.

    Args:
        network: The model; its trained parameters are overwritten.
        arrays: Their incoming values by name; left untouched.
        rows: The client's images.
        settings: Loss and optimiser.
        rng: A public stream that orders the batches.

    Returns:
        New arrays, same names and shapes, float32.
    """
    load_arrays(network, arrays)
    named = dict(network.named_parameters())
    trained = [named[name] for name in network.trained]
    start = [parameter.detach().clone() for parameter in trained] if settings.proximal_mu else []
    optimizer = _torch_optimizer(trained, settings)
    for step, batch in enumerate(shuffled_batches(len(rows.labels), settings, rng)):
        optimizer.zero_grad()
        physical = settings.physical_batch_size or len(batch)
        for at in range(0, len(batch), physical):
            examples = rows.batch(network, batch[at : at + physical], settings, step=step)
            (loss_sum(network, examples, settings) / len(batch)).backward()  # type: ignore[no-untyped-call]
        for parameter, origin in zip(trained, start, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - origin, alpha=settings.proximal_mu)
        optimizer.step()
    return trained_arrays(network)


def _torch_optimizer(trained: list[torch.nn.Parameter], settings: LocalSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        trained, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def train_network_privately(
    network: AnyNetwork,
    arrays: Arrays,
    rows: Rows,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> Arrays:
    """One round of DP-SGD on all trained tensors, clipped jointly for each unit.

    Args:
        network: The model; its trained parameters are overwritten.
        arrays: Their incoming values by name; left untouched.
        rows: The client's images.
        plan: Sampler, clip bound and noise.
        settings: Loss and optimiser.
        streams: Fresh streams of this message.

    Returns:
        New arrays, same names and shapes, float32.
    """
    provide = _provider(network, rows.images.shape[1:], settings)
    members = UnitRows(rows.units)
    steps = iter(range(plan.steps_per_round))

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        load_arrays(network, _unflatten(weights, arrays))
        step = next(steps)
        total = np.zeros(weights.size)
        for gradient in _unit_gradients(network, provide, rows, members, batch, settings, step):
            total += clipped_sum(gradient[None], max_grad_norm=plan.max_grad_norm)
        return total

    start = np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])
    return _unflatten(private_steps(start, members.count, clipped, plan, settings, streams), arrays)


Provider = Callable[[Examples, np.ndarray], Iterator[np.ndarray]]


def _unit_gradients(
    network: AnyNetwork,
    provide: Provider,
    rows: Rows,
    members: UnitRows,
    batch: np.ndarray,
    settings: LocalSettings,
    step: int,
) -> Iterator[np.ndarray]:
    """(p,) float64 of each unit in a batch: the mean of its images' gradients."""

    def gradients(chosen: np.ndarray) -> Iterator[np.ndarray]:
        for at in range(0, len(chosen), _CHUNK):
            part = chosen[at : at + _CHUNK]
            examples = rows.batch(network, part, settings, step=step)
            yield from (gradient.astype(np.float64) for gradient in provide(examples, rows.digests[part]))

    chosen = members.rows(batch)
    if not members.grouped:
        yield from gradients(chosen)
        return
    unit_of = members.units(chosen)
    for unit in np.unique(unit_of):
        images = chosen[unit_of == unit]
        with np.errstate(over="ignore", invalid="ignore"):
            yield np.asarray(sum(gradients(images)) / len(images))


def _provider(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> Provider:
    """One image at a time on a CPU, where that is as fast; chunks on an accelerator, if they agree."""
    on_cpu = next(network.parameters()).device.type == "cpu"
    slots = settings.physical_batch_size or (1 if on_cpu else _SLOTS_ON_ACCELERATOR)
    if slots > 1 and not _chunks_are_right(network, input_shape, replace(settings, learning_rate=0.0, stream=b"")):
        _log.warning("gradients in chunks disagree with one at a time for this network: taking one at a time")
        slots = 1
    if slots == 1:
        return lambda examples, _: gradients_one_by_one(network, examples, settings)
    return lambda examples, digests: gradients_in_slots(network, examples, digests, settings, slots=slots)


@lru_cache(maxsize=16)
def _chunks_are_right(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> bool:
    return providers_agree(network, input_shape, settings)


def network_logits(
    network: AnyNetwork, arrays: Arrays, images: np.ndarray, settings: LocalSettings, *, apart: bool = False
) -> np.ndarray:
    """Logits (n, classes) float32 of (n, ...) features or pixels, in chunks of 64, or each alone."""
    size = 1 if apart else _CHUNK
    load_arrays(network, arrays)
    device = next(network.parameters()).device
    chunks: list[np.ndarray] = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast == "bfloat16"),
    ):
        for at in range(0, max(1, len(images)), size):
            inputs = network.prepare(images[at : at + size]).to(device)
            chunks.append(network(inputs).float().cpu().numpy())
    return np.concatenate(chunks)


def _unflatten(weights: np.ndarray, like: Arrays) -> Arrays:
    out: Arrays = {}
    at = 0
    for name, array in like.items():
        out[name] = weights[at : at + array.size].reshape(array.shape).astype(np.float32)
        at += array.size
    return out
