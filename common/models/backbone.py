"""Contract of a backbone and the preprocessing of its images.

The contract is a torch module. Code that must run without torch reads `BackboneInfo`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """Format of the images that a backbone takes, from the backbone's own configuration.

    Mean and deviation are of channel values in 0..255. Interpolation is `bicubic` or `bilinear`, and `image_size` is
    the side in pixels when `data.image-size` is not set.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    image_size: int


class Backbone(nn.Module):
    """A backbone without its classifier."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last layer's maps (n, ...) of normalised (n, 3, side, side)."""
        raise NotImplementedError

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Return features (n, d) of `feature_maps`."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[str]]:
        """Return parameter names by group of layers, from the first to the last."""
        raise NotImplementedError

    def own_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of `model` from a weights file, under the names of `model`."""
        return tensors


def times255(values: Any) -> tuple[float, float, float]:
    """Convert statistics of pixels in 0..1 to those of pixels in 0..255."""
    red, green, blue = (round(255 * float(value), 4) for value in values)
    return red, green, blue
