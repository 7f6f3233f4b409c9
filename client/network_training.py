"""Local training of a whole network with torch, plain and under differential privacy."""

import numpy as np
import torch
from torch import nn

from client.private_training import PrivateStreams, private_steps
from client.training import LocalSettings, shuffled_batches
from common.models.cnn import load_cnn, to_pixels
from common.privacy.clipping import clipped_sum
from common.privacy.plan import PrivacyPlan


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
    """One round of DP-SGD on all tensors of a network.

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

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        total = np.zeros(weights.size)
        network = load_cnn(_unflatten(weights, arrays), images.shape[1:])
        for row in batch:
            gradient = example_gradient(network, images[row], int(labels[row]))
            total += clipped_sum(gradient[None], max_grad_norm=plan.max_grad_norm)
        return total

    start = np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])
    return _unflatten(private_steps(start, len(labels), clipped, plan, settings, streams), arrays)


def example_gradient(network: nn.Module, image: np.ndarray, label: int) -> np.ndarray:
    """The gradient of one image's loss by all tensors.

    One image at a time: in a larger batch an image's neighbours change how its
    gradient is rounded, and hostile weights can blow that up beyond the clip bound.

    Args:
        network: The model.
        image: (side, side, channels) uint8.
        label: The image's class.

    Returns:
        (p,) float32, the tensors side by side in the network's order.
    """
    loss = nn.functional.cross_entropy(network(to_pixels(image[None])), torch.tensor([label]))
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return np.asarray(torch.cat([part.ravel() for part in parts]).numpy())


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
