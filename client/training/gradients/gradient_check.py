"""Check of a provider of per-example gradients on made-up images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from client.training.per_example_gradients import Examples, gradients_one_by_one
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork

# Largest distance of a tensor's gradient, relative to its own length and to that of the whole gradient.
_OWN, _WHOLE = 1e-3, 1e-5
_NUM_IMAGES = 5
_SPREAD = 0.1


def largest_distance(
    network: AnyNetwork,
    input_shape: tuple[int, ...],
    settings: LocalSettings,
    gradients: Callable[[AnyNetwork, Examples, LocalSettings], Iterator[np.ndarray]],
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
    """
    with _shaken(network):
        examples = _made_up(network, input_shape, settings)
        alone = _by_tensor(network, gradients_one_by_one(network, examples, settings))
        found = _by_tensor(network, gradients(network, examples, settings))
    whole = np.sqrt(sum(_norms(part) ** 2 for part in alone))
    if not (whole > 0).all():
        return float("inf")
    pairs = zip(found, alone, strict=True)
    distances = [_norms(theirs - ours) / (_OWN * _norms(ours) + _WHOLE * whole) for theirs, ours in pairs]
    largest = float(np.max(distances))
    return largest if np.isfinite(largest) else float("inf")


@contextmanager
def _shaken(network: AnyNetwork) -> Iterator[None]:
    """Add noise to the trained parameters for a while."""
    named, rng = dict(network.named_parameters()), np.random.default_rng(0)
    before = {name: named[name].detach().clone() for name in network.trained}
    try:
        for name, values in before.items():
            # Layers of zeros stop all gradients below them, and so would hide what is wrong there.
            spread = _SPREAD * max(_SPREAD, float(values.float().square().mean().sqrt()))
            noise = torch.from_numpy(spread * rng.standard_normal(tuple(values.shape))).to(values)
            named[name].data.copy_(values + noise)
        yield
    finally:
        for name, values in before.items():
            named[name].data.copy_(values)


def _made_up(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> Examples:
    rng = np.random.default_rng(1)
    shape = (_NUM_IMAGES, *input_shape)
    made_up = rng.integers(0, 256, shape, dtype=np.uint8)
    if len(input_shape) == 1:
        made_up = rng.standard_normal(shape).astype(np.float32)
    inputs = network.prepare(made_up).to(next(network.parameters()).device)
    with torch.no_grad():
        num_classes = network(inputs[:1]).shape[1]
    labels = torch.arange(_NUM_IMAGES, device=inputs.device) % num_classes
    turned = inputs.flip(-1) if settings.rotation_weight else None
    return Examples(inputs, labels, turned, labels % 4 if settings.rotation_weight else torch.zeros_like(labels))


def _by_tensor(network: AnyNetwork, gradients: Iterator[np.ndarray]) -> list[np.ndarray]:
    """Return each tensor's gradients, (n, values) float64."""
    named = dict(network.named_parameters())
    ends = np.cumsum([named[name].numel() for name in network.trained])
    return np.split(np.stack(list(gradients)).astype(np.float64), ends[:-1], axis=1)


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(rows, axis=1))
