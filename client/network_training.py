"""Local training of a whole network with torch, plain and under differential privacy."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from client.private_training import PrivateStreams, private_steps
from client.training import LocalSettings, shuffled_batches
from common.models.cnn import load_cnn, to_pixels
from common.privacy.clipping import clipped_sum
from common.privacy.plan import PrivacyPlan

# One image at a time: in a larger batch its neighbours change how its gradient is rounded, and hostile weights
# can blow that up beyond the clip bound.
PHYSICAL_BATCH_SIZE = 1
# Images need no gradient, which is what torch remarks on when Opacus hooks the first layer.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def train_network(
    arrays: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    settings: LocalSettings,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One round of mini-batch SGD with momentum.

    Args:
        arrays: The network's tensors by name; left untouched.
        images: (n, side, side, channels) uint8; n may be 0.
        labels: (n,) int64.
        settings: The optimiser.
        rng: A public stream that orders the batches.

    Returns:
        New arrays, same names and shapes, float32.
    """
    network = load_cnn(arrays, images.shape[1:])
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    targets = torch.from_numpy(labels)
    for batch in shuffled_batches(len(labels), settings, rng):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(to_pixels(images[batch])), targets[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def train_network_privately(
    arrays: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> dict[str, np.ndarray]:
    """One round of DP-SGD on all tensors of a network, per-example gradients by Opacus.

    Args:
        arrays: The network's tensors by name; left untouched.
        images: (n, side, side, channels) uint8; n may be 0.
        labels: (n,) int64.
        plan: Sampler, clip bound and noise.
        settings: Learning rate and momentum.
        streams: Fresh streams of this message.

    Returns:
        New arrays, same names and shapes, float32.
    """
    gradients = per_example_gradients(arrays, images.shape[1:])
    num_weights = sum(array.size for array in arrays.values())

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        total = np.zeros(num_weights)
        for at in range(0, len(batch), PHYSICAL_BATCH_SIZE):
            rows = batch[at : at + PHYSICAL_BATCH_SIZE]
            total += clipped_sum(gradients(weights, images[rows], labels[rows]), max_grad_norm=plan.max_grad_norm)
        return total

    start = np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])
    return _unflatten(private_steps(start, len(labels), clipped, plan, settings, streams), arrays)


def per_example_gradients(
    arrays: dict[str, np.ndarray], input_shape: tuple[int, ...]
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A function of (flat weights, images, labels) that gives each example's gradient.

    Args:
        arrays: Names, order and shapes of the tensors.
        input_shape: (side, side, channels).

    Returns:
        (p,) float64, (n, side, side, channels) uint8, (n,) int64 -> (n, p) float32.
        The tensors lie side by side in the order of `arrays`.

    Source: Opacus `GradSampleModule`; a test compares with one-by-one gradients.
    """
    from opacus import GradSampleModule

    module = GradSampleModule(load_cnn(arrays, input_shape), loss_reduction="sum")
    parameters = dict(module._module.named_parameters())

    def gradients(weights: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            for name, array in _unflatten(weights, arrays).items():
                parameters[name].copy_(torch.from_numpy(array))
        module.zero_grad()
        logits = module(to_pixels(images))
        nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()  # type: ignore[no-untyped-call]
        parts = [parameters[name].grad_sample.reshape(len(labels), -1) for name in arrays]
        return np.asarray(torch.cat(parts, dim=1).numpy())

    return gradients


def network_logits(arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits (n, classes) float32 of (n, side, side, channels) uint8 images, in chunks of 256."""
    network = load_cnn(arrays, images.shape[1:]).eval()
    chunks = [np.zeros((0, len(arrays["output.bias"])), dtype=np.float32)]
    with torch.inference_mode():
        for at in range(0, len(images), 256):
            chunks.append(network(to_pixels(images[at : at + 256])).numpy())
    return np.concatenate(chunks)


def _unflatten(weights: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    at = 0
    for name, array in like.items():
        out[name] = weights[at : at + array.size].reshape(array.shape).astype(np.float32)
        at += array.size
    return out
