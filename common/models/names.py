"""Which backbones there are, and what stands behind a short name."""

from dataclasses import dataclass

from common.errors import ConfigError

PROVIDERS = ("timm", "torchvision", "clip")
# A name alone is one of these, or a name that only one of timm and torchvision knows.
SHORT_NAMES = {
    "efficientnet_lite0": "timm:tf_efficientnet_lite0",
    "vgg16": "timm:vgg16",
    "resnet18": "timm:resnet18",
    "resnet50": "timm:resnet50",
    "mobilenet_v3_small": "torchvision:mobilenet_v3_small",
    "convnext_atto": "timm:convnext_atto",
    "convnext_tiny": "timm:convnext_tiny",
    "vit_tiny_patch16_224": "timm:vit_tiny_patch16_224",
    "vit_base_patch16_224": "timm:vit_base_patch16_224",
    "vit_small_patch14_dinov2": "timm:vit_small_patch14_dinov2",
    "clip_vit_b_32": "clip:ViT-B-32/laion2b_s34b_b79k",
}


@dataclass(frozen=True)
class BackboneName:
    """A backbone's provider and the provider's own name for it.

    Attributes:
        given: What the user wrote in `model.backbone`.
        provider: `timm`, `torchvision` or `clip`.
        architecture: The provider's name; for `clip` it may end in `/<pretraining>`.
    """

    given: str
    provider: str
    architecture: str


def resolve_name(name: str) -> BackboneName:
    """What stands behind `model.backbone`.

    Raises:
        ConfigError: The provider is unknown, nobody knows the name, or two providers do.

    >>> resolve_name("efficientnet_lite0").architecture
    'tf_efficientnet_lite0'
    """
    full = SHORT_NAMES.get(name, name)
    provider, colon, architecture = full.partition(":")
    if not colon:
        provider, architecture = _only_provider(name), name
    if provider not in PROVIDERS or not architecture:
        raise ConfigError(
            f"model.backbone={name!r}: write timm:<name>, torchvision:<name> or clip:<name>, or one of "
            f"{', '.join(['cnn', *SHORT_NAMES])}"
        )
    return BackboneName(name, provider, architecture)


def _only_provider(name: str) -> str:
    import timm
    from torchvision import models

    knowing = [
        provider
        for provider, known in (("timm", timm.is_model(name)), ("torchvision", name in models.list_models()))
        if known
    ]
    if len(knowing) == 2:
        raise ConfigError(
            f"model.backbone={name!r} is in timm and in torchvision: write timm:{name} or torchvision:{name}"
        )
    if not knowing:
        close = timm.list_models(f"*{name}*")[:5]
        hint = f"; timm has {', '.join(close)}" if close else ""
        raise ConfigError(
            f"model.backbone={name!r} is known neither to timm nor to torchvision{hint}\n  see `bract list backbones`"
        )
    return knowing[0]


def known_backbones() -> list[tuple[str, str, str]]:
    """Rows of (name, what stands behind it, where its weights come from) for people to read."""
    rows = [("cnn", "two convolutions, trained from scratch", "none needed")]
    for name, full in SHORT_NAMES.items():
        packaged = name == "efficientnet_lite0"
        rows.append((name, full, "installed with Bract" if packaged else "hub, or a file in model.weights"))
    rows.append(("timm:<name>", "any of timm's image models", "hub, or a file in model.weights"))
    rows.append(("torchvision:<name>", "ResNet, VGG, MobileNet, EfficientNet, ConvNeXt, ViT", "hub, or a file"))
    rows.append(("clip:<name>[/<pretraining>]", "image tower of open_clip (extra `clip`)", "hub, or a file"))
    return rows
