"""Fused convolutions: the same features as the layers that they replace."""

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from common.models.backbone import Backbone, Preprocessing
from common.models.engines.fused_convolutions import FusedConvolution, fuse_convolutions
from common.models.frozen_batch_norm import FrozenBatchNorm, freeze_batch_norm
from common.models.loading import load_pretrained
from common.models.names import resolve_name

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
SIDE = 64


class Layers(Backbone):
    """Layers one after another, or as the given function calls them."""

    def __init__(self, layers: list[nn.Module], forward: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(nn.Sequential(*layers), Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic", SIDE))
        self._forward = forward

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels) if self._forward is None else self._forward(*self.model, pixels)  # type: ignore[misc]

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1)


def norm(channels: int) -> FrozenBatchNorm:
    layer = nn.BatchNorm2d(channels)
    for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
        tensor.uniform_(0.5, 2)  # type: ignore[union-attr]
    return FrozenBatchNorm(layer)


def difference(body: Backbone, side: int, *, fused: int, norms: int = 0) -> float:
    """Fuse a body and return the largest difference of its features, relative to the largest feature."""
    body = body.eval().requires_grad_(False)
    fast = copy.deepcopy(body)
    fuse_convolutions(fast, side, 3, torch.float32)
    images = torch.randn(3, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        right, found = (each.pooled(each.feature_maps(images)) for each in (body, fast))
    assert sum(isinstance(layer, FusedConvolution) for layer in fast.modules()) == fused
    assert sum(isinstance(layer, FrozenBatchNorm) for layer in fast.modules()) == norms
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("efficientnet_lite0", 49), ("resnet18", 20), ("mobilenet_v3_small", 52), ("timm:convnext_atto", 40)],
)
def test_fused_backbone_gives_the_same_features(name: str, convolutions: int) -> None:
    body, _ = load_pretrained(resolve_name(name), "random", side=SIDE, seed=0)
    freeze_batch_norm(body)

    assert difference(body, SIDE, fused=convolutions) < 1e-4


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (2, 2), (1, 2), (2, 3)])
def test_padding_of_tensorflow_is_part_of_the_kernel(side: int, kernel: int, stride: int) -> None:
    layer = Conv2dSame(3, 4, kernel, stride)

    assert difference(Layers([layer]), side, fused=1) < 1e-5


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.ReLU(inplace=True)])
def test_activation_becomes_part_of_the_convolution(activation: nn.Module) -> None:
    first, second = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 3, groups=4)

    assert difference(Layers([first, norm(8), activation, second, copy.deepcopy(activation)]), 16, fused=2) < 1e-5


def test_activation_inside_a_norm_is_kept_when_it_cannot_be_fused() -> None:
    layer = norm(8)
    layer.act = nn.Tanh()

    assert difference(Layers([nn.Conv2d(3, 8, 3), layer, nn.ReLU()]), 16, fused=1) < 1e-5


def test_activation_after_a_sum_in_place_is_not_fused_with_the_norm_before() -> None:
    def residual(first: nn.Module, normed: nn.Module, last: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        maps = normed(first(pixels))
        maps += 3 * pixels
        out: torch.Tensor = last(maps)
        return out

    body = Layers([nn.Conv2d(3, 3, 3, padding=1), norm(3), nn.ReLU(inplace=True)], residual)

    assert difference(body, 16, fused=1) < 1e-5


def test_layers_that_are_called_twice_stay() -> None:
    def twice(layer: nn.Module, normed: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = normed(layer(normed(layer(pixels))))
        return out

    assert difference(Layers([nn.Conv2d(3, 3, 3), norm(3)], twice), 16, fused=0, norms=1) == 0


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 4, 3, padding="same")]
)
def test_other_paddings_stay(layer: nn.Module) -> None:
    assert difference(Layers([layer, norm(4)]), 16, fused=0, norms=1) == 0
