"""Backbones of the torchvision library."""

from typing import Any

import torch
from torch import nn

from common.errors import ConfigError
from common.models.backbone import CONV_SIDE, Backbone, Preprocessing, times255
from common.models.names import BackboneName

_TORCHVISION_GROUPS = r"^(?:features\.(\d+)|layer(\d+)|encoder\.layers\.encoder_layer_(\d+))"


class TorchvisionBackbone(Backbone):
    """One of the torchvision families that share a shape: `features`, residual layers, or an encoder."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps (n, c, h, w); a ViT's class token (n, d)."""
        if hasattr(self.model, "layer4"):
            for name, child in self.model.named_children():
                if name != "avgpool":
                    pixels = child(pixels)
            return pixels
        if hasattr(self.model, "features"):
            return self.model.features(pixels)  # type: ignore[operator,no-any-return]
        return self.model(pixels)  # type: ignore[no-any-return]

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Mean over positions, then the norm layer that ConvNeXt has before its classifier."""
        if maps.ndim == 2:
            return maps
        pooled = maps.mean(dim=(2, 3), keepdim=True)
        norm = getattr(self.model, "classifier", None)
        return pooled.flatten(1) if norm is None else norm(pooled).flatten(1)

    def layer_groups(self) -> list[list[str]]:
        """A group a numbered stage or block; what comes before the first belongs to it, and so on."""
        import re

        found: list[list[str]] = []
        last = None
        for name, _ in self.model.named_parameters():
            match = re.match(_TORCHVISION_GROUPS, name)
            stage = match.group(0) if match else last
            if not found or (stage != last and last is not None):
                found.append([])
            last = stage
            found[-1].append(f"model.{name}")
        return found


def build_torchvision_backbone(name: BackboneName, side: int | None) -> Backbone:
    """Build a backbone of torchvision with the weights its constructor draws.

    Raises:
        ConfigError: The library does not know the name, or the backbone cannot take images of this size.
    """
    from torchvision import models

    if name.architecture not in models.list_models(module=models):
        close = ", ".join(models.list_models(module=models, include=f"*{name.architecture[:6]}*")[:5])
        raise ConfigError(f"model.backbone={name.given!r}: torchvision has no such classifier; {close}")
    model: Any = models.get_model(name.architecture, weights=None)
    wanted = side or CONV_SIDE
    if hasattr(model, "encoder") and hasattr(model, "heads"):
        native = int(model.image_size)
        if side not in (None, native):
            raise ConfigError(
                f"data.image-size={side} with model.backbone={name.given!r}: it takes {native}; timm's ViTs take others"
            )
        model.heads, wanted = nn.Identity(), native
    elif hasattr(model, "layer4"):
        model.fc = nn.Identity()
        del model.fc
    elif hasattr(model, "features") and hasattr(model, "avgpool"):
        first = model.classifier[0] if isinstance(model.classifier, nn.Sequential) else None
        model.classifier = first if type(first).__name__ == "LayerNorm2d" else None
    else:
        raise ConfigError(
            f"model.backbone={name.given!r}: of torchvision Bract knows ResNet, VGG, MobileNet, EfficientNet, ConvNeXt "
            "and ViT; take others from timm"
        )
    # torchvision's own presets for ImageNet weights.
    mean, std = times255((0.485, 0.456, 0.406)), times255((0.229, 0.224, 0.225))
    return TorchvisionBackbone(model, Preprocessing(mean, std, "bilinear", wanted))
