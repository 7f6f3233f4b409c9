"""Backbones of three providers behind one shape: pixels in, maps or pooled features out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Sides in pixels of images for convolutional networks and for transformers.
CONV_SIDE, TOKEN_SIDE = 128, 224


@dataclass(frozen=True)
class Preprocessing:
    """How images must reach a backbone, from the backbone's own configuration.

    Attributes:
        mean: Subtracted from each channel's values in 0..255.
        std: Divided by, after the mean was subtracted.
        interpolation: `bicubic` or `bilinear`.
        image_size: Side in pixels when `data.image-size` is not set.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    image_size: int


class Backbone(nn.Module):
    """A backbone without its classifier.

    Attributes:
        model: The provider's module.
        preprocessing: What images it wants.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the last layer gives before pooling: (n, ...) for normalised (n, 3, side, side)."""
        raise NotImplementedError

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Features (n, d) from maps."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[str]]:
        """Parameter names by group of layers, from the first to the last."""
        raise NotImplementedError


def times255(values: Any) -> tuple[float, float, float]:
    """Statistics of pixels in 0..1 as those of pixels in 0..255."""
    red, green, blue = (round(255 * float(value), 4) for value in values)
    return red, green, blue
