"""Backbones of three providers behind one shape: pixels in, maps or pooled features out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import ConfigError
from common.models.catalogue import BackboneName

_CONV_SIDE, _TOKEN_SIDE = 128, 224
_TORCHVISION_GROUPS = r"^(?:features\.(\d+)|layer(\d+)|encoder\.layers\.encoder_layer_(\d+))"


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


class Body(nn.Module):
    """A backbone without its classifier.

    Attributes:
        model: The provider's module.
        preprocessing: What images it wants.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the last layer gives before pooling: (n, ...) for normalised (n, 3, side, side)."""
        raise NotImplementedError

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Features (n, d) from maps."""
        raise NotImplementedError

    def groups(self) -> list[list[str]]:
        """Parameter names by group of layers, from the first to the last."""
        raise NotImplementedError


class TimmBody(Body):
    """One of timm's image models."""

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Timm's `forward_features`."""
        out: torch.Tensor = self.model.forward_features(pixels)  # type: ignore[operator]
        return out

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Timm's pooling and norm before the classifier; positions are averaged where it has none."""
        out: torch.Tensor = self.model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return out if out.ndim == 2 else out.mean(dim=(2, 3))

    def groups(self) -> list[list[str]]:
        """Timm's own coarse groups."""
        from timm.models import group_parameters

        matcher = self.model.group_matcher(coarse=True)  # type: ignore[operator]
        found: dict[Any, list[str]] = group_parameters(self.model, matcher)
        return [[f"model.{name}" for name in found[key]] for key in sorted(found)]


class TorchvisionBody(Body):
    """One of the torchvision families that share a shape: `features`, residual layers, or an encoder."""

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
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

    def groups(self) -> list[list[str]]:
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


class ClipBody(Body):
    """The image tower of an open_clip model."""

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """The projected image embedding (n, d), not yet scaled."""
        out: torch.Tensor = self.model(pixels)
        return out

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Nothing is left to do."""
        return maps

    def groups(self) -> list[list[str]]:
        """A group a residual block; the projection belongs to the last one."""
        found: dict[int, list[str]] = {}
        blocks = len(getattr(getattr(self.model, "transformer", None), "resblocks", []))
        for name, _ in self.model.named_parameters():
            parts = name.split(".")
            first = name.startswith(("conv1", "class_embedding", "positional_embedding", "ln_pre"))
            at = int(parts[2]) + 1 if name.startswith("transformer.resblocks.") else (0 if first else blocks)
            found.setdefault(at, []).append(f"model.{name}")
        return [found[key] for key in sorted(found)]


def build_body(name: BackboneName, side: int | None) -> Body:
    """The architecture with whatever weights its constructor draws; nothing is read or downloaded.

    Args:
        name: From `resolve_name`.
        side: Side of the images in pixels, or None for the default.

    Raises:
        ConfigError: The provider does not know the name, its family has no shape that
            Bract knows, or it cannot take images of this size.
    """
    if name.provider == "timm":
        return _timm_body(name, side)
    if name.provider == "torchvision":
        return _torchvision_body(name, side)
    from common.models.clip import build_clip_body

    return build_clip_body(name, side)


def _timm_body(name: BackboneName, side: int | None) -> Body:
    import timm

    if not timm.is_model(name.architecture):
        close = ", ".join(timm.list_models(f"*{name.architecture.split('.')[0]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"model.backbone={name.given!r}: timm has no such model; {close}")
    model: Any = timm.create_model(name.architecture, pretrained=False, num_classes=0)
    native = int(model.pretrained_cfg["input_size"][1])
    tokens = hasattr(model, "patch_embed") and hasattr(model, "pos_embed")
    wanted = side or (min(native, _TOKEN_SIDE) if not _is_conv(model) else _CONV_SIDE)
    if tokens and wanted != native:
        model = timm.create_model(name.architecture, pretrained=False, num_classes=0, dynamic_img_size=True)
        patch = int(model.patch_embed.patch_size[0])
        if wanted % patch:
            raise ConfigError(
                f"data.image-size={wanted} with model.backbone={name.given!r}: its patches are {patch} pixels wide, so "
                f"take a multiple, such as {max(1, wanted // patch) * patch}"
            )
    if hasattr(model, "pre_logits") and not isinstance(model.pre_logits, nn.Identity) and hasattr(model, "features"):
        model.pre_logits = nn.Identity()  # VGG's two dense layers of 4,096: a classifier, not a backbone
    cfg = model.pretrained_cfg
    facts = Preprocessing(times255(cfg["mean"]), times255(cfg["std"]), str(cfg["interpolation"]), wanted)
    if name.architecture == "tf_efficientnet_lite0":
        facts = Preprocessing((127.0,) * 3, (128.0,) * 3, facts.interpolation, wanted)  # as its authors trained it
    return TimmBody(model, facts)


def _is_conv(model: nn.Module) -> bool:
    return not hasattr(model, "patch_embed") and any(isinstance(layer, nn.Conv2d) for layer in model.modules())


def times255(values: Any) -> tuple[float, float, float]:
    """Statistics of pixels in 0..1 as those of pixels in 0..255."""
    red, green, blue = (round(255 * float(value), 4) for value in values)
    return red, green, blue


def _torchvision_body(name: BackboneName, side: int | None) -> Body:
    from torchvision import models

    if name.architecture not in models.list_models(module=models):
        close = ", ".join(models.list_models(module=models, include=f"*{name.architecture[:6]}*")[:5])
        raise ConfigError(f"model.backbone={name.given!r}: torchvision has no such classifier; {close}")
    model: Any = models.get_model(name.architecture, weights=None)
    wanted = side or _CONV_SIDE
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
    return TorchvisionBody(model, Preprocessing(mean, std, "bilinear", wanted))
