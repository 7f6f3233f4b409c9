"""A small convolutional network, trained from scratch on any image size."""

import numpy as np
import torch
from torch import nn

from common.arrays import Arrays


class SmallCnn(nn.Module):
    """Network of two 3x3 convolutions with pooling and two dense layers.

    The side of the square images is at least 4 pixels; there are 1 or 3 channels.
    """

    def __init__(self, side: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense = nn.Linear(64 * (side // 4) ** 2, 64)
        self.output = nn.Linear(64, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, num_classes) of (n, channels, side, side) float32 in [-1, 1]."""
        logits: torch.Tensor = self.output(self.features(pixels))
        return logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layer (n, 64) of `forward`'s pixels."""
        maps = nn.functional.max_pool2d(torch.relu(self.conv1(pixels)), 2)
        maps = nn.functional.max_pool2d(torch.relu(self.conv2(maps)), 2)
        return torch.relu(self.dense(maps.flatten(1)))


def initial_cnn(input_shape: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Arrays:
    """Draw starting weights that depend on the given generator alone.

    Source: He et al. 2015, arXiv:1502.01852 (normal, fan-in).
    """
    arrays: Arrays = {}
    # On this device tensors have names and shapes only, and nothing is drawn from torch's generator.
    with torch.device("meta"):
        shapes = SmallCnn(input_shape[0], input_shape[2], num_classes).state_dict()
    for name, tensor in shapes.items():
        shape = tuple(tensor.shape)
        if len(shape) == 1:
            arrays[name] = np.zeros(shape, dtype=np.float32)
        else:
            spread = np.sqrt(2.0 / np.prod(shape[1:]))
            arrays[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
    return arrays


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert (n, side, side, channels) uint8 to (n, channels, side, side) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()
