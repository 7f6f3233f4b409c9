"""The check of a network's per-example gradients in slots."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from client.training.gradients.gradient_check import providers_agree
from client.training.gradients.per_example_gradients import (
    gradients_in_slots,
    gradients_one_by_one,
    slot_chunks,
)
from client.training.network_sgd import TrainingSet
from client.training.round_settings import LocalSettings, settings_of
from common.models.classifier import AnyNetwork, build_network, load_arrays
from common.models.initialization import initial_arrays
from simulations.device_check.examined import CLASSES, config_of
from simulations.device_check.features import made_up_images
from simulations.device_check.findings import Finding

_AGREEMENT = 1e-3
# As many as the trainer takes on an accelerator.
_SLOTS = 16


def check_gradients(
    part: str, settings: dict[str, Any], device: str, *, shape: tuple[int, ...], number: int
) -> Iterator[Finding]:
    """Compare gradients in slots with those of the processor.

    The processor computes one image at a time.

    Args:
        part: Name of the network.
        settings: Its settings.
        device: Where the slots are computed.
        shape: Shape of an image, or of its features.
        number: Number of images.
    """
    local = settings_of(config_of(settings, batch=number, device=device), server_round=1)
    on_processor = started_network(settings, shape)
    on_device = copy.deepcopy(on_processor).to(device)
    rows = made_up_set(shape, number)
    examples = rows.batch(on_processor, np.arange(number), local, step=0)
    right = np.stack(list(gradients_one_by_one(on_processor, examples, local)))
    found = _in_slots(on_device, rows, local)
    distance = np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)
    yield Finding(part, "distance of a gradient", float(distance.max()), _AGREEMENT)
    yield Finding(part, "gradients moved by other images", _dependent(on_device, rows, local, found), 0)
    again = _in_slots(on_device, rows, local)
    yield Finding(part, "gradients moved by repeating", int(np.any(again != found, axis=1).sum()), 0)
    agree = providers_agree(on_device, shape, local)
    yield Finding(part, "slots refused by the trainer", int(not agree), 0)


def started_network(settings: dict[str, Any], shape: tuple[int, ...]) -> AnyNetwork:
    """Return a network whose gradients reach all layers.

    A head of zeros would stop them.
    """
    config = config_of(settings, batch=1, device="cpu")
    arrays, rng = initial_arrays(config, shape, CLASSES), np.random.default_rng(3)
    for name in arrays:
        if not name.startswith("body."):
            arrays[name] = (arrays[name] + 0.05 * rng.standard_normal(arrays[name].shape)).astype(np.float32)
    network = build_network(config, shape, len(CLASSES))
    load_arrays(network, arrays)
    return network


def made_up_set(shape: tuple[int, ...], number: int) -> TrainingSet:
    """Return made-up training examples with a digest each."""
    rng = np.random.default_rng(1)
    if len(shape) == 1:
        features = rng.standard_normal((number, *shape)).astype(np.float32)
        images = features / np.linalg.norm(features, axis=1, keepdims=True)
    else:
        images = made_up_images(number, shape[0])[..., : shape[2]]
    digests = rng.integers(0, 256, (number, 32), dtype=np.uint8)
    return TrainingSet(images, np.arange(number) % len(CLASSES), digests)


def _in_slots(network: AnyNetwork, rows: TrainingSet, settings: LocalSettings) -> np.ndarray:
    """Return each row's gradient, (n, p) float32, in order."""
    examples = rows.batch(network, np.arange(len(rows.labels)), settings, step=0)
    gradients = np.stack(list(gradients_in_slots(network, examples, rows.digests, settings, slots=_SLOTS)))
    order = np.concatenate([chunk[chunk >= 0] for chunk in slot_chunks(rows.digests, _SLOTS)])
    return np.asarray(gradients[np.argsort(order)])


def _dependent(network: AnyNetwork, rows: TrainingSet, settings: LocalSettings, found: np.ndarray) -> int:
    """Return the number of gradients that change among fewer and other images."""
    half, rng = len(rows.labels) // 2, np.random.default_rng(2)
    images, digests, labels = rows.images[:-1].copy(), rows.digests[:-1].copy(), rows.labels[:-1].copy()
    images[half:] = images[half:][::-1] // 2 if images.dtype == np.uint8 else -images[half:]
    digests[half:] = rng.integers(0, 256, digests[half:].shape, dtype=np.uint8)
    labels[half:] = 0
    moved = _in_slots(network, TrainingSet(images, labels, digests), settings)
    return int(np.any(moved[:half] != found[:half], axis=1).sum())
