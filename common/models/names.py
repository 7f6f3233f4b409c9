"""Short and full names of backbones."""

from dataclasses import dataclass

from common.errors import ConfigError
from common.models.providers.registry import PROVIDERS, BackboneName

# A name without a prefix is one of these, or a name that only one installed provider knows.
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
class BackboneSpec:
    """A backbone with the weights and the image size that a run asks for.

    Weights are empty for the installed package or the hub, `random` (which alone depends on the seed), or a file. An
    empty hash accepts any; the image size is None for the backbone's default.
    """

    name: str
    weights: str
    weights_sha256: str
    image_size: int | None
    seed: int


def resolve_name(name: str) -> BackboneName:
    """Return the provider and architecture that `model.backbone` names.

    Raises:
        ConfigError: The provider is unknown, or none or several providers know the name.

    >>> resolve_name("efficientnet_lite0").architecture
    'tf_efficientnet_lite0'
    """
    full = SHORT_NAMES.get(name, name)
    provider, colon, architecture = full.partition(":")
    if not colon:
        provider, architecture = _only_provider(name), name
    if provider not in PROVIDERS or not architecture:
        *others, last = (f"{prefix}:<name>" for prefix in PROVIDERS)
        raise ConfigError(
            f"model.backbone={name!r}: write {', '.join(others)} or {last}, or one of "
            f"{', '.join(['cnn', *SHORT_NAMES])}"
        )
    return BackboneName(name, provider, architecture)


def usual_interpolation(name: str) -> str | None:
    """Return the interpolation that a backbone probably wants.

    It is None if the name does not say which library has it.

    >>> usual_interpolation("efficientnet_lite0"), usual_interpolation("torchvision:resnet18")
    ('bicubic', 'bilinear')
    """
    row = PROVIDERS.get(SHORT_NAMES.get(name, name).partition(":")[0])
    return None if row is None else row.interpolation


def _only_provider(name: str) -> str:
    # Optional libraries are left out. Otherwise a name could mean two backbones on two machines.
    modules = {prefix: row.load() for prefix, row in PROVIDERS.items() if not row.extra}
    knowing = [prefix for prefix, module in modules.items() if module.knows(name)]
    if len(knowing) > 1:
        raise ConfigError(
            f"model.backbone={name!r} is in {' and in '.join(knowing)}: write "
            f"{' or '.join(f'{prefix}:{name}' for prefix in knowing)}"
        )
    if not knowing:
        similar = [f"{prefix}:{close}" for prefix, module in modules.items() for close in module.similar_names(name)]
        hint = f"; similar names are {', '.join(similar)}" if similar else ""
        raise ConfigError(
            f"model.backbone={name!r} is not known to {' or '.join(modules)}{hint}\n  see `bract list backbones`"
        )
    return knowing[0]


def known_backbones() -> list[tuple[str, str, str]]:
    """Return rows of (name, description, source of the weights) for people to read."""
    rows = [("cnn", "two convolutions, trained from scratch", "none needed")]
    for name, full in SHORT_NAMES.items():
        packaged = name == "efficientnet_lite0"
        rows.append((name, full, "installed with Bract" if packaged else "hub, or a file in model.weights"))
    for row in PROVIDERS.values():
        extra = f" (extra `{row.extra}`)" if row.extra else ""
        rows.append((row.usage, row.description + extra, "hub, or a file in model.weights"))
    return rows
