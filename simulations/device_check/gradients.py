"""The check of per-example gradients of networks, in slots and one image at a time."""

import copy
from collections.abc import Iterator

import numpy as np

from client.training.network_sgd import TrainingSet
from client.training.per_example_gradients import (
    gradients_in_slots,
    gradients_one_by_one,
    providers_agree,
    slot_chunks,
)
from client.training.round_settings import LocalSettings, settings_of
from common.config.schema import RunConfig
from common.models.classifier import AnyNetwork, build_network, load_arrays
from common.models.initialization import initial_arrays
from common.randomness import public_stream
from simulations.device_check.features import made_up_images
from simulations.device_check.findings import Finding

CLASSES = tuple(str(name) for name in range(10))
_AGREEMENT = 1e-3
# As many as the trainer takes on an accelerator.
_SLOTS = 16


def check_gradients(
    part: str, config: RunConfig, device: str, *, shape: tuple[int, ...], number: int
) -> Iterator[Finding]:
    """Compare gradients in slots with the processor's, computed one by one.

    Args:
        part: Name of the network.
        config: Settings of a private run.
        device: Where the slots are computed.
        shape: Shape of an image, or of its features.
        number: Number of images.
    """
    settings = settings_of(config, server_round=1)
    on_processor = _started(config, shape)
    on_device = copy.deepcopy(on_processor).to(device)
    rows = _made_up_set(shape, number)
    examples = rows.batch(on_processor, np.arange(number), settings, step=0)
    right = np.stack(list(gradients_one_by_one(on_processor, examples, settings)))
    found = _in_slots(on_device, rows, settings)
    distance = np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)
    yield Finding(part, "distance of a gradient", float(distance.max()), _AGREEMENT)
    yield Finding(part, "gradients moved by other images", _dependent(on_device, rows, settings, found), 0)
    again = _in_slots(on_device, rows, settings)
    yield Finding(part, "gradients moved by repeating", int(np.any(again != found, axis=1).sum()), 0)
    agree = providers_agree(on_device, shape, settings)
    yield Finding(part, "slots refused by the trainer", int(not agree), 0)


def _started(config: RunConfig, shape: tuple[int, ...]) -> AnyNetwork:
    """Return the run's first network with a head that is not zero, so that gradients reach all layers."""
    arrays = initial_arrays(config, shape, CLASSES)
    rng = public_stream(config.seed, "device check")
    for name in arrays:
        if not name.startswith("body."):
            arrays[name] = (arrays[name] + 0.05 * rng.standard_normal(arrays[name].shape)).astype(np.float32)
    network = build_network(config, shape, len(CLASSES))
    load_arrays(network, arrays)
    return network


def _made_up_set(shape: tuple[int, ...], number: int) -> TrainingSet:
    rng = np.random.default_rng(1)
    if len(shape) == 1:
        features = rng.standard_normal((number, *shape)).astype(np.float32)
        images = features / np.linalg.norm(features, axis=1, keepdims=True)
    else:
        images = made_up_images(number, shape[0])[..., : shape[2]]
    digests = rng.integers(0, 256, (number, 32), dtype=np.uint8)
    return TrainingSet(images, np.arange(number) % len(CLASSES), digests)


def _in_slots(network: AnyNetwork, rows: TrainingSet, settings: LocalSettings) -> np.ndarray:
    """Return the gradients of all rows, (n, p) float32, in the order of the rows."""
    examples = rows.batch(network, np.arange(len(rows.labels)), settings, step=0)
    gradients = np.stack(list(gradients_in_slots(network, examples, rows.digests, settings, slots=_SLOTS)))
    order = np.concatenate([chunk[chunk >= 0] for chunk in slot_chunks(rows.digests, _SLOTS)])
    return np.asarray(gradients[np.argsort(order)])


def _dependent(network: AnyNetwork, rows: TrainingSet, settings: LocalSettings, found: np.ndarray) -> int:
    """Return how many gradients change a bit when the other half of the images are others, and fewer."""
    half, rng = len(rows.labels) // 2, np.random.default_rng(2)
    images, digests, labels = rows.images[:-1].copy(), rows.digests[:-1].copy(), rows.labels[:-1].copy()
    images[half:] = images[half:][::-1] // 2 if images.dtype == np.uint8 else -images[half:]
    digests[half:] = rng.integers(0, 256, digests[half:].shape, dtype=np.uint8)
    labels[half:] = 0
    moved = _in_slots(network, TrainingSet(images, labels, digests), settings)
    return int(np.any(moved[:half] != found[:half], axis=1).sum())
