"""Backbones of the torchvision library."""

import re
from typing import Any

import torch
from torch import nn

from common.errors import ConfigError
from common.models.backbone import Backbone, Preprocessing, times255
from common.models.providers.registry import CONV_SIDE, BackboneName
from common.system.light_imports import light_imports

with light_imports():
    from torchvision import models

_TORCHVISION_GROUPS = r"^(?:features\.(\d+)|layer(\d+)|encoder\.layers\.encoder_layer_(\d+))"


class TorchvisionBackbone(Backbone):
    """A torchvision model of a family with `features`, residual layers or an encoder."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return maps (n, c, h, w) or a ViT's class tokens (n, d)."""
        if hasattr(self.model, "layer4"):
            for name, child in self.model.named_children():
                if name != "avgpool":
                    pixels = child(pixels)
            return pixels
        if hasattr(self.model, "features"):
            return self.model.features(pixels)  # type: ignore[operator,no-any-return]
        return self.model(pixels)  # type: ignore[no-any-return]

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Average over positions, followed by ConvNeXt's last norm layer."""
        if maps.ndim == 2:
            return maps
        pooled = maps.mean(dim=(2, 3), keepdim=True)
        norm = getattr(self.model, "classifier", None)
        return pooled.flatten(1) if norm is None else norm(pooled).flatten(1)

    def layer_groups(self) -> list[list[str]]:
        """Return one group for each numbered stage or block.

        Parameters before the first stage belong to it, those after a stage to that stage.
        """
        groups: list[list[str]] = []
        last = None
        for name, _ in self.model.named_parameters():
            match = re.match(_TORCHVISION_GROUPS, name)
            stage = match.group(0) if match else last
            if not groups or (stage != last and last is not None):
                groups.append([])
            last = stage
            groups[-1].append(f"model.{name}")
        return groups


def knows(architecture: str) -> bool:
    """Check whether torchvision has a classifier of this name."""
    return architecture in models.list_models(module=models)


def similar_names(architecture: str) -> list[str]:
    """Return up to five names of torchvision that begin alike."""
    return list(models.list_models(module=models, include=f"*{architecture[:6]}*")[:5])


def fetch_tensors(name: BackboneName) -> dict[str, torch.Tensor]:
    """Download the pretrained weights from torchvision's hub."""
    return dict(models.get_model(name.architecture, weights="DEFAULT").state_dict())


def build_backbone(name: BackboneName, side: int | None) -> Backbone:
    """Build a backbone of torchvision with the weights its constructor draws.

    Raises:
        ConfigError: torchvision does not know the name, Bract does not support its family, or the backbone cannot take
            images of this size.
    """
    if not knows(name.architecture):
        similar = ", ".join(similar_names(name.architecture))
        raise ConfigError(f"model.backbone={name.given!r}: torchvision has no such classifier; {similar}")
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
