"""A small convolutional network, trained from scratch on any image size."""

import numpy as np
import torch
from torch import nn

from common.arrays import Arrays
from common.errors import ConfigError

_LEAST_DEPTH = 2
# Largest side of the last maps. The dense layer's gradients and its noise under DP grow with their area.
_LARGEST_MAPS = 8
_GROUPS = 8


def cnn_depth(side: int, wanted: int | None) -> int:
    """Return the number of convolutions for images of a side.

    `wanted` is the value of `model.cnn-depth`.

    >>> cnn_depth(28, None), cnn_depth(224, None)
    (2, 5)

    Raises:
        ConfigError: So many poolings leave nothing of the image.
    """
    if wanted is None:
        return max(_LEAST_DEPTH, (side // (_LARGEST_MAPS + 1)).bit_length())
    if side >> wanted == 0:
        raise ConfigError(f"model.cnn-depth={wanted} halves images of {side} pixels to nothing: use a smaller one")
    return wanted


class SmallCnn(nn.Module):
    """Network of some 3x3 convolutions and two dense layers.

    A pooling follows each convolution. The side of the square images is at least 4 pixels; there are 1 or 3 channels.
    `depth` is as in `cnn_depth`. More than two convolutions are normalised, image by image and without parameters.

    Attributes:
        channels_last: Set while the filters are in this layout, for gradients in it. No result depends on it.
    """

    channels_last = False

    def __init__(self, side: int, channels: int, num_classes: int, depth: int | None = None) -> None:
        super().__init__()
        depth = cnn_depth(side, depth)
        widths = (channels, 32, *(64,) * (depth - 1))
        self.convolutions = tuple(f"conv{number}" for number in range(1, depth + 1))
        for name, width, wider in zip(self.convolutions, widths, widths[1:], strict=False):
            self.add_module(name, nn.Conv2d(width, wider, 3, padding=1))
        self.last_side = side >> depth
        self.dense = nn.Linear(64 * self.last_side**2, 64)
        self.output = nn.Linear(64, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, num_classes) of (n, channels, side, side) float32 in [-1, 1]."""
        logits: torch.Tensor = self.output(self.features(pixels))
        return logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layer (n, 64) of `forward`'s pixels."""
        return self.pooled(self.feature_maps(pixels))

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last convolution's maps (n, 64, last_side, last_side)."""
        maps, normalised = pixels, len(self.convolutions) > _LEAST_DEPTH
        for name in self.convolutions:
            maps = self.get_submodule(name)(maps)
            # Without it a step of the default learning rate on large images is too long, and training diverges.
            maps = nn.functional.group_norm(maps, _GROUPS) if normalised else maps
            # Pooled first: the same values and gradients, and a quarter of them to rectify.
            maps = torch.relu(nn.functional.max_pool2d(maps, 2))
        return maps / self.last_side if normalised else maps

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layer (n, 64) of `feature_maps`."""
        if self.channels_last and maps.requires_grad:
            # In another layout than its maps, a gradient makes the pooling copy all that it reads and writes.
            maps.register_hook(_to_channels_last)  # type: ignore[no-untyped-call]
        return torch.relu(self.dense(maps.flatten(1)))


def _to_channels_last(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def initial_cnn(
    input_shape: tuple[int, ...], num_classes: int, rng: np.random.Generator, depth: int | None = None
) -> Arrays:
    """Draw starting weights that depend on the given generator alone.

    Source: He et al. 2015, arXiv:1502.01852 (normal, fan-in).
    """
    arrays: Arrays = {}
    depth = cnn_depth(input_shape[0], depth)
    # On this device tensors have names and shapes only, and nothing is drawn from torch's generator.
    with torch.device("meta"):
        shapes = SmallCnn(input_shape[0], input_shape[2], num_classes, depth).state_dict()
    for name, tensor in shapes.items():
        shape = tuple(tensor.shape)
        if len(shape) == 1:
            arrays[name] = np.zeros(shape, dtype=np.float32)
        else:
            # A normalised network divides the inputs of its dense layer by their side, so this counts channels alone.
            divided = depth > _LEAST_DEPTH and name == "dense.weight"
            spread = np.sqrt(2.0 / (64 if divided else np.prod(shape[1:])))
            arrays[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
    return arrays


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Convert (n, side, side, channels) uint8 to (n, channels, side, side) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()
