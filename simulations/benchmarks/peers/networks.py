"""The networks of the benchmark `cross-device`, importable wherever torch is."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.models.small_cnn import SmallCnn, to_pixels


class LargeCnn(SmallCnn):
    """The network of pfl's own benchmark on CIFAR-10, without its dropout.

    It has 1.63 million parameters.

    Source: Song et al. 2024, arXiv:2404.06430 (`simple_cnn`).
    """

    def __init__(self, side: int, channels: int, num_classes: int, depth: int | None = None) -> None:
        nn.Module.__init__(self)
        del depth
        self.conv1, self.conv2 = nn.Conv2d(channels, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense = nn.Linear(64 * ((side - 4) // 2) ** 2, 128)
        self.output = nn.Linear(128, num_classes)

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the pooled maps of the second convolution."""
        return nn.functional.max_pool2d(torch.relu(self.conv2(torch.relu(self.conv1(pixels)))), 2)


NETWORKS: dict[str, type[SmallCnn]] = {"cnn": SmallCnn, "pfl's": LargeCnn}


def initial_network(name: str, folder: Path) -> SmallCnn:
    """Return a network with the weights that all sides start from."""
    network = NETWORKS[name](32, 3, 10)
    network.load_state_dict(_weights(folder / "initial.npz"))
    return network


# Some programs build a network for every client, and reading the file each time would slow them down.
@cache
def _weights(file: Path) -> dict[str, torch.Tensor]:
    with np.load(file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def clients_of(folder: Path, per_client: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each client's pixels (n, 3, 32, 32) in [-1, 1] and labels."""
    with np.load(folder / "images.npz") as arrays:
        pixels, labels = to_pixels(arrays["train_x"]), torch.from_numpy(arrays["train_y"])
    return list(zip(torch.split(pixels, per_client), torch.split(labels, per_client), strict=True))


def accuracy_of(network: Any, folder: Path) -> float:
    """Return the share of test images that a network gets right."""
    with np.load(folder / "images.npz") as arrays:
        pixels, labels = to_pixels(arrays["test_x"]), torch.from_numpy(arrays["test_y"])
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in torch.split(pixels, 100)])
    return float((logits.argmax(1) == labels).float().mean())
