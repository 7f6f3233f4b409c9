"""Methods of explanation, against formulas, on every kind of backbone.

Drives `common.inference.explanation.method_names`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.inference.explanation import methods
from common.inference.explanation.methods import METHODS, LogOdds, choose_method
from common.models.classifier import AnyNetwork, CnnNetwork, build_network

MakeConfig = Callable[..., RunConfig]
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


def network_of(make_config: MakeConfig, backbone: str, side: int, **more: Any) -> AnyNetwork:
    settings = {"model.backbone": backbone, "data.image-size": side, "privacy.mechanism": "none"}
    whole = {} if backbone == "cnn" else {"model.weights": "random", "training.augmentation": "flip"}
    network = build_network(make_config(settings | whole | more), (side, side, 3), 3)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return network.eval().requires_grad_(False)


def inputs_of(network: AnyNetwork, side: int, number: int = 2) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    return network.prepare(pixels).requires_grad_()


@pytest.fixture(name="tower", scope="module")
def tower_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("clip") / "explained-clip.json"
    file.write_text(json.dumps(CLIP))
    open_clip.add_model_config(Path(file))
    return f"clip:{file}"


@pytest.mark.parametrize(
    ("backbone", "side", "method", "cells"),
    [
        ("cnn", 32, "grad-cam", 8),
        ("timm:test_resnet", 64, "grad-cam", 2),
        ("timm:test_vit", 48, "integrated-gradients", 3),
        ("{tower}", 32, "integrated-gradients", 4),
        # One position is left of so small an image.
        ("timm:test_resnet", 32, "integrated-gradients", 16),
    ],
)
def test_every_kind_of_backbone_has_a_method(
    make_config: MakeConfig, tower: str, backbone: str, side: int, method: str, cells: int
) -> None:
    network = network_of(make_config, backbone.format(tower=tower), side)
    inputs, classes = inputs_of(network, side, number=1), torch.tensor([1])

    chosen = choose_method(network, inputs.detach(), "auto")
    maps = METHODS[chosen](LogOdds(network), inputs, classes)

    assert (chosen, tuple(maps.shape)) == (method, (1, cells, cells))
    assert torch.isfinite(maps).all()
    assert (maps >= 0).all()
    assert maps.max() > 0
    if method != "grad-cam":
        with pytest.raises(ConfigError, match="use integrated-gradients or occlusion"):
            choose_method(network, inputs.detach(), "grad-cam")


@pytest.mark.parametrize(
    ("shape", "method"),
    [((1, 96, 7, 7), "grad-cam"), ((1, 7, 7, 96), "integrated-gradients"), ((1, 96, 1, 1), "integrated-gradients")],
)
def test_maps_with_the_channels_last_or_one_position_are_none_for_grad_cam(shape: tuple[int, ...], method: str) -> None:
    """Swin transformers have maps of the second kind."""
    network: Any = SimpleNamespace(feature_maps=lambda inputs: torch.zeros(shape))

    assert choose_method(network, torch.zeros(1, 3, 224, 224), "auto") == method


def test_the_output_is_the_log_of_the_odds_whatever_is_added_to_all_logits(make_config: MakeConfig) -> None:
    network = network_of(make_config, "cnn", 32)
    inputs, classes = inputs_of(network, 32, number=3).detach(), torch.tensor([0, 2, 1])
    scored = LogOdds(network)

    before = scored(inputs, classes)
    shares = torch.softmax(scored.logits(inputs), dim=1)[torch.arange(3), classes]
    assert isinstance(network, CnnNetwork)
    network.output.bias += 100.0

    assert torch.allclose(before, torch.log(shares / (1 - shares)), atol=1e-3)
    assert torch.allclose(scored(inputs, classes), before, atol=1e-3)


@pytest.mark.parametrize(("backbone", "side"), [("cnn", 32), ("timm:test_resnet", 64)])
def test_grad_cam_is_its_formula(make_config: MakeConfig, backbone: str, side: int) -> None:
    network = network_of(make_config, backbone, side)
    inputs, classes = inputs_of(network, side), torch.tensor([0, 2])

    maps = network.feature_maps(inputs.detach()).requires_grad_()
    logits = network.head(network.pooled(maps))
    odds = torch.stack(
        [row[c] - torch.cat([row[:c], row[c + 1 :]]).logsumexp(0) for row, c in ((logits[0], 0), (logits[1], 2))]
    )
    slopes = torch.autograd.grad(odds.sum(), maps)[0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    expected = (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()

    assert torch.allclose(METHODS["grad-cam"](LogOdds(network), inputs, classes), expected, rtol=1e-3, atol=1e-5)


def test_a_channel_that_is_zero_everywhere_leaves_the_map_finite(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(make_config, "timm:test_resnet", 64, **{"training.augmentation": "flip"})
    whole = network.feature_maps
    monkeypatch.setattr(
        network,
        "feature_maps",
        lambda inputs: whole(inputs) * (torch.arange(whole(inputs).shape[1]) > 3)[:, None, None],
    )
    inputs = inputs_of(network, 64)

    maps = METHODS["grad-cam"](LogOdds(network), inputs, torch.tensor([0, 1]))

    assert torch.isfinite(maps).all()
    assert maps.max() > 0


class _Corner(nn.Module):
    """Scores of two classes, the first by the brightness of the upper left eighth."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def feature_maps(self, inputs: torch.Tensor) -> torch.Tensor:
        bright = inputs[:, :, :8, :8].sum(dim=(1, 2, 3))
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return maps


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_maps_light_what_the_score_depends_on_and_nothing_else(method: Any) -> None:
    inputs = torch.rand(2, 3, 64, 64).requires_grad_()
    network: Any = _Corner()

    first, second = (METHODS[method](LogOdds(network), inputs, torch.tensor([c, c])) for c in (0, 1))

    size = first.shape[1] // 8
    outside = first.clone()
    # Windows of the occlusion reach over the edge by half their width.
    outside[:, : size + size // 2 + 1, : size + size // 2 + 1] = 0
    assert (first[:, :size, :size] > 0).all()
    assert outside.abs().max() < 1e-6
    # The same part speaks against the other class, and the map holds only what speaks for one.
    assert second.abs().max() < 1e-6


def test_a_missing_package_is_named_with_its_extra(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "is_installed", lambda name: name != "captum")
    network = network_of(make_config, "cnn", 32)

    with pytest.raises(ConfigError, match=r"need the package captum: pip install .*\[explain\]"):
        choose_method(network, inputs_of(network, 32).detach(), "occlusion")
