"""Network that takes the images of cameras and files, not normalised numbers."""

import torch
from torch import nn

from common.models.classifier import AnyNetwork, Network

# Weights of Pillow's conversion to grey, in 1/65536.
_GREY = (19595.0, 38470.0, 7471.0)


class PixelNetwork(nn.Module):
    """Network from RGB pixels (n, side, side, 3) uint8 to logits (n, classes) float32.

    A model of grey images converts them to grey, equal to Pillow to the bit.
    """

    def __init__(self, network: AnyNetwork, channels: int) -> None:
        super().__init__()
        self.network = network
        body = isinstance(network, Network)
        self.mean = network.get_buffer("mean") if body else torch.tensor(127.5)
        self.std = network.get_buffer("std") if body else torch.tensor(127.5)
        self.grey = torch.tensor(_GREY).view(1, 3, 1, 1)
        self._is_grey = channels == 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of RGB pixels (n, side, side, 3) uint8."""
        logits: torch.Tensor = self.network((self.channels(pixels) - self.mean) / self.std)
        return logits

    def channels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the model's channels, (n, channels, side, side) float32 of 0 to 255."""
        values = pixels.permute(0, 3, 1, 2).float()
        if self._is_grey:
            # All terms are whole numbers below 2^24, so that float32 is exact.
            values = torch.floor(((values * self.grey).sum(dim=1, keepdim=True) + 32768.0) / 65536.0)
        return values
