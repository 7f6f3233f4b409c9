"""Check of a provider of per-example gradients on made-up images.

On no private ones, because its answer shows in a log and in the time that training takes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from client.training.gradients.per_example_gradients import Examples, gradients_in_slots, gradients_one_by_one
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork

# Largest distance of a tensor's gradient, relative to its own length and to that of the whole gradient.
_OWN, _WHOLE = 1e-3, 1e-5
NUM_IMAGES = 5
_SPREAD = 0.1


def largest_distance(
    network: AnyNetwork,
    input_shape: tuple[int, ...],
    settings: LocalSettings,
    gradients: Callable[[AnyNetwork, Examples, LocalSettings], Iterator[np.ndarray]],
    *,
    spared: int = 0,
) -> float:
    """Return how far a provider's gradients are from those computed alone.

    The result is at most 1 if each tensor's gradient of each image agrees, and never a small number by accident: NaN
    or a gradient of zeros counts as infinitely far. The network is left as it was. Images and weights are made up,
    because the answer shows in what a client sends.

    Args:
        network: The network, with any finite weights.
        input_shape: Shape of an image, or of its features.
        settings: Settings of local training.
        gradients: The provider, which yields each example's gradient in order.
        spared: Number of images that may disagree. Where two values of a maximum are equal up to rounding, another
            order of additions chooses the other one, and both gradients are right.
    """
    named = dict(network.named_parameters())
    ends = np.cumsum([named[name].numel() for name in network.trained])[:-1]
    with _shaken(network):
        examples = made_up_examples(network, input_shape, settings)
        alone, found = gradients_one_by_one(network, examples, settings), gradients(network, examples, settings)
        # One pair at a time, since all gradients of a large network together would not fit into memory.
        distances = [_distance(theirs, ours, ends) for ours, theirs in zip(alone, found, strict=True)]
    # NaN is the largest.
    largest = float(np.sort(distances)[-1 - spared])
    return largest if np.isfinite(largest) else float("inf")


def _distance(theirs: np.ndarray, ours: np.ndarray, ends: np.ndarray) -> float:
    """Return the largest distance of a tensor, infinite where all gradients are zeros."""
    whole = float(np.linalg.norm(ours))
    if not whole > 0:
        return float("inf")
    pairs = zip(np.split(theirs, ends), np.split(ours, ends), strict=True)
    return float(np.max([_norm(his - own) / (_OWN * _norm(own) + _WHOLE * whole) for his, own in pairs]))


def providers_agree(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> bool:
    """Return True if gradients in slots are those of one image at a time."""
    # Each image has a slot of its own, so they come in order.
    digests = np.zeros((NUM_IMAGES, 32), dtype=np.uint8)
    digests[:, 0] = np.arange(NUM_IMAGES)

    def in_slots(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
        return gradients_in_slots(network, examples, digests, settings, slots=NUM_IMAGES)

    try:
        return largest_distance(network, input_shape, settings, in_slots, spared=1) <= 1
    except RuntimeError:
        return False


@contextmanager
def _shaken(network: AnyNetwork) -> Iterator[None]:
    """Add noise to the trained parameters for a while."""
    rng = np.random.default_rng(0)

    def shaken(values: torch.Tensor) -> torch.Tensor:
        # Layers of zeros stop all gradients below them, and so would hide what is wrong there.
        spread = _SPREAD * max(_SPREAD, float(values.float().square().mean().sqrt()))
        return values + torch.from_numpy(spread * rng.standard_normal(tuple(values.shape))).to(values)

    with _replaced(network, shaken):
        yield


@contextmanager
def made_up_weights(network: AnyNetwork) -> Iterator[None]:
    """Replace the trained parameters by random ones for a while.

    A check of kernels must not see those of a message, whose gradients may all be zeros.
    """
    rng = np.random.default_rng(2)

    def drawn(values: torch.Tensor) -> torch.Tensor:
        spread = np.sqrt(2 / np.prod(values.shape[1:])) if values.ndim > 1 else _SPREAD
        return torch.from_numpy(spread * rng.standard_normal(tuple(values.shape))).to(values)

    with _replaced(network, drawn):
        yield


@contextmanager
def _replaced(network: AnyNetwork, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    named = dict(network.named_parameters())
    before = {name: named[name].detach().clone() for name in network.trained}
    try:
        for name, values in before.items():
            named[name].data.copy_(change(values))
        yield
    finally:
        for name, values in before.items():
            named[name].data.copy_(values)


def made_up_examples(
    network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, *, number: int = NUM_IMAGES
) -> Examples:
    """Return examples for a check, on the network's device."""
    rng = np.random.default_rng(1)
    shape = (number, *input_shape)
    made_up = rng.integers(0, 256, shape, dtype=np.uint8)
    if len(input_shape) == 1:
        made_up = rng.standard_normal(shape).astype(np.float32)
    inputs = network.prepare(made_up).to(next(network.parameters()).device)
    with torch.no_grad():
        num_classes = network(inputs[:1]).shape[1]
    labels = torch.arange(number, device=inputs.device) % num_classes
    turned = inputs.flip(-1) if settings.rotation_weight else None
    return Examples(inputs, labels, turned, labels % 4 if settings.rotation_weight else torch.zeros_like(labels))


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
