"""Table of the libraries that backbones come from.

To add a library, add one file to this folder and one row to `PROVIDERS`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch

    from common.models.backbone import Backbone

# Default image sides in pixels, for convolutional networks and for transformers.
CONV_SIDE, TOKEN_SIDE = 128, 224


@dataclass(frozen=True)
class BackboneName:
    """A backbone's provider and the provider's own name for it.

    `given` is what the user wrote; the architecture of `clip` may end in `/<pretraining>`.
    """

    given: str
    provider: str
    architecture: str


class ProviderModule(Protocol):
    """Functions that each provider's file offers.

    A library with a text encoder also offers `zero_shot_head`, see `open_clip_models`.
    """

    def build_backbone(self, name: BackboneName, side: int | None) -> "Backbone":
        """Build the architecture with the weights that its constructor draws.

        Raises:
            ConfigError: The library does not know the name, or the backbone cannot take images of `side` pixels.
        """

    def fetch_tensors(self, name: BackboneName) -> "dict[str, torch.Tensor]":
        """Download the pretrained weights of `Backbone.model` from the library's hub."""

    def knows(self, architecture: str) -> bool:
        """Check whether the library has an architecture of this name."""

    def similar_names(self, architecture: str) -> list[str]:
        """Return up to five names of the library for an error message."""


@dataclass(frozen=True)
class Provider:
    """Library of backbones behind one prefix of `model.backbone`.

    `file` is a module in this folder, a `ProviderModule`. An extra of Bract installs the library where one is named.
    `hub` is where its weights come from, empty for the Hugging Face hub. `interpolation` is how most of its backbones
    want images to be scaled.
    """

    usage: str
    description: str
    file: str
    extra: str = ""
    hub: str = ""
    interpolation: str = "bicubic"

    def load(self) -> ProviderModule:
        """Import the provider's file."""
        # Not at the top of this file. It imports torch, and a client with cached features reads this table.
        return cast(ProviderModule, import_module(f"common.models.providers.{self.file}"))


PROVIDERS = {
    "timm": Provider("timm:<name>", "any of timm's image models", "timm_models"),
    "torchvision": Provider(
        "torchvision:<name>",
        "ResNet, VGG, MobileNet, EfficientNet, ConvNeXt, ViT",
        "torchvision_models",
        hub="https://download.pytorch.org",
        interpolation="bilinear",
    ),
    "clip": Provider("clip:<name>[/<pretraining>]", "image tower of open_clip", "open_clip_models", extra="clip"),
}
