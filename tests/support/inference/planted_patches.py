"""Small networks whose classes are the colour of a patch that lies anywhere in an image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from common.config.schema import RunConfig
from common.models.classifier import AnyNetwork, build_network, load_arrays
from common.models.initialization import initial_arrays

_COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220]], np.uint8)


def planted(number: int, side: int, patch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return noisy images (n, side, side, 3), their classes and the upper left corner (n, 2) of each patch."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 196, (number, side, side, 3)).astype(np.uint8)
    labels, corners = rng.integers(0, 3, number), rng.integers(0, side - patch + 1, (number, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        image[top : top + patch, left : left + patch] = _COLOURS[label]
    return images, labels, corners


def trained_on_patches(
    make_config: Callable[..., RunConfig], backbone: str, side: int, patch: int, steps: int
) -> AnyNetwork:
    """Train a network end to end on 1,000 such images, and freeze it."""
    whole = {} if backbone == "cnn" else {"model.tuning": "full", "model.weights": "random"}
    settings = {"model.backbone": backbone, "data.image-size": side, "privacy.mechanism": "none"}
    config = make_config(settings | whole)
    network = build_network(config, (side, side, 3), 3)
    load_arrays(network, initial_arrays(config, (side, side, 3), ("red", "green", "blue")))
    images, labels, _ = planted(1000, side, patch, seed=1)
    optimizer = torch.optim.AdamW((part for part in network.parameters() if part.requires_grad), lr=1e-3)
    rng = np.random.default_rng(3)
    for _ in range(steps):
        rows = rng.integers(0, len(labels), 32)
        loss = nn.functional.cross_entropy(network(network.prepare(images[rows])), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def share_lit(maps: np.ndarray, corners: np.ndarray, side: int, patch: int) -> float:
    """Return the share of maps whose peak lies in the patch, widened by one of the map's cells on each side."""
    stride, hits = side // maps.shape[1], 0
    for heat, corner in zip(maps, corners, strict=True):
        cell = np.array(np.unravel_index(heat.argmax(), heat.shape))
        peak = (cell + 0.5) * stride
        inside = (peak >= corner - stride) & (peak < corner + patch + stride)
        hits += bool(inside.all() and heat.max() > 0)
    return hits / len(maps)
