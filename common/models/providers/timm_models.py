"""Backbones of the timm library."""

from typing import Any

import torch
from torch import nn

from common.errors import ConfigError
from common.models.backbone import Backbone, Preprocessing, times255
from common.models.providers.registry import CONV_SIDE, TOKEN_SIDE, BackboneName
from common.system.light_imports import light_imports

with light_imports():
    import timm
    from timm.models import group_parameters


class TimmBackbone(Backbone):
    """An image model of timm."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the output of timm's `forward_features`."""
        out: torch.Tensor = self.model.forward_features(pixels)  # type: ignore[operator]
        return out

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Apply timm's own pooling and norm layer."""
        out: torch.Tensor = self.model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        # Some models have no pooling of their own.
        return out if out.ndim == 2 else out.mean(dim=(2, 3))

    def layer_groups(self) -> list[list[str]]:
        """Return timm's own coarse groups."""
        matcher = self.model.group_matcher(coarse=True)  # type: ignore[operator]
        groups: dict[Any, list[str]] = group_parameters(self.model, matcher)
        return [[f"model.{name}" for name in groups[key]] for key in sorted(groups)]


def knows(architecture: str) -> bool:
    """Check whether timm has an architecture of this name."""
    return bool(timm.is_model(architecture))


def similar_names(architecture: str) -> list[str]:
    """Return up to five names of timm that contain this one."""
    return list(timm.list_models(f"*{architecture.partition('.')[0]}*")[:5])


def fetch_tensors(name: BackboneName) -> dict[str, torch.Tensor]:
    """Download the pretrained weights from timm's hub."""
    return dict(timm.create_model(name.architecture, pretrained=True, num_classes=0).state_dict())


def build_backbone(name: BackboneName, side: int | None) -> Backbone:
    """Build a backbone of timm with the weights its constructor draws.

    Raises:
        ConfigError: timm does not know the name, or the backbone cannot take images of this size.
    """
    if not knows(name.architecture):
        similar = ", ".join(similar_names(name.architecture)) or "see timm.list_models()"
        raise ConfigError(f"model.backbone={name.given!r}: timm has no such model; {similar}")
    model: Any = timm.create_model(name.architecture, pretrained=False, num_classes=0)
    native = int(model.pretrained_cfg["input_size"][1])
    tokens = hasattr(model, "patch_embed") and hasattr(model, "pos_embed")
    wanted = side or (min(native, TOKEN_SIDE) if not _is_conv(model) else CONV_SIDE)
    if tokens and wanted != native:
        model = timm.create_model(name.architecture, pretrained=False, num_classes=0, dynamic_img_size=True)
        patch = int(model.patch_embed.patch_size[0])
        if wanted % patch:
            raise ConfigError(
                f"data.image-size={wanted} with model.backbone={name.given!r}: its patches are {patch} pixels wide, so "
                f"take a multiple, such as {max(1, wanted // patch) * patch}"
            )
    if hasattr(model, "pre_logits") and not isinstance(model.pre_logits, nn.Identity) and hasattr(model, "features"):
        # VGG's two dense layers of 4,096 are part of its classifier, not of the backbone.
        model.pre_logits = nn.Identity()
    cfg = model.pretrained_cfg
    facts = Preprocessing(times255(cfg["mean"]), times255(cfg["std"]), str(cfg["interpolation"]), wanted)
    if name.architecture == "tf_efficientnet_lite0":
        # The authors trained it with these values; timm's configuration has others.
        facts = Preprocessing((127.0,) * 3, (128.0,) * 3, facts.interpolation, wanted)
    return TimmBackbone(model, facts)


def _is_conv(model: nn.Module) -> bool:
    return not hasattr(model, "patch_embed") and any(isinstance(layer, nn.Conv2d) for layer in model.modules())
