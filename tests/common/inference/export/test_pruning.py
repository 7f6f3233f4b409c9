"""A pruned network computes what the original computes without the removed channels or weights.

Drives `common.inference.export.pruning`.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.inference.classifier import Classifier, load_model
from common.inference.export import onnx_file, pruning
from common.inference.export.comparison import torch_runner, trial_pixels
from common.inference.export.formats import Pruning, export_model
from common.inference.export.pixel_network import PixelNetwork
from common.inference.export.pruning import prune
from tests.support.inference.stored_models import settings_of, shaded_images, store_model

MakeModel = Callable[..., Classifier]


@pytest.fixture(name="make_model")
def make_model_fixture(make_config: Callable[..., RunConfig], tmp_path: Path) -> MakeModel:
    def make(backbone: str, **more: Any) -> Classifier:
        source = shaded_images(tmp_path / "pets", per_class=2)
        store_model(tmp_path / "run", make_config(settings_of(source, backbone, **more)))
        return load_model(tmp_path / "run", device="cpu")

    return make


def pixels_to_logits(model: Classifier) -> PixelNetwork:
    return PixelNetwork(model.module, model.card.channels).eval()


def size_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("backbone", "more", "part"),
    [
        ("timm:test_resnet", {}, "channels"),
        ("timm:test_convnext", {}, "channels"),
        ("timm:test_efficientnet", {}, "channels"),
        ("cnn", {}, "channels"),
        ("timm:test_resnet", {"model__head": "mlp"}, "channels"),
        # Queries, keys and values are one layer, and the library does not know how they are split into heads.
        ("timm:test_vit", {"data__image_size": 160}, "weights"),
        # Its channels are normalised in groups.
        ("cnn", {"data__image_size": 80}, "weights"),
    ],
)
def test_channels_are_removed_where_the_backbone_allows_it(
    make_model: MakeModel, backbone: str, more: dict[str, Any], part: str
) -> None:
    model = make_model(backbone, **more)
    original = pixels_to_logits(model)
    before = {name: value.clone() for name, value in original.state_dict().items()}

    pruned = prune(original, model.card.side, 0.25, None)

    assert pruned.part == part
    assert (size_of(pruned.network) < 0.9 * size_of(original)) == (part == "channels")
    assert pruned.text.startswith("25%")
    # The head sees the same features, and the model that was loaded is as it was.
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])
        if ".head." in name or ".output." in name:
            assert torch.equal(value, pruned.network.state_dict()[name])


def test_a_channel_without_effect_is_removed_first_and_changes_nothing(make_model: MakeModel) -> None:
    model = make_model("cnn")
    network = model.module
    with torch.no_grad():
        network.get_parameter("conv1.weight")[:16] = 0.0
        network.get_parameter("conv1.bias")[:16] = 0.0
        network.get_parameter("conv2.weight")[:, :16] = 0.0
        network.get_parameter("conv2.weight")[:32] = 0.0
        network.get_parameter("conv2.bias")[:32] = 0.0
        network.get_parameter("dense.weight")[:, : 32 * 8**2] = 0.0
    original = pixels_to_logits(model)

    pruned = prune(original, 32, 0.5, "channels")

    pixels = trial_pixels(32)
    assert pruned.network.network.get_parameter("conv1.weight").shape[0] == 16
    assert pruned.network.network.get_parameter("dense.weight").shape[1] == 32 * 8**2
    np.testing.assert_allclose(torch_runner(pruned.network)(pixels), torch_runner(original)(pixels), rtol=1e-4)


def test_the_smallest_weights_become_zero_and_the_head_keeps_its_own(make_model: MakeModel) -> None:
    model = make_model("timm:test_resnet")
    original = pixels_to_logits(model)

    pruned = prune(original, 32, 0.4, "weights")

    pairs = [
        (layer.weight, pruned.network.get_parameter(f"{name}.weight"))
        for name, layer in original.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    before, after = (torch.cat([pair[at].flatten() for pair in pairs]) for at in (0, 1))
    assert float((after == 0).float().mean()) == pytest.approx(0.4, abs=0.01)
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert torch.equal(after[after != 0], before[after != 0])
    assert torch.equal(
        pruned.network.get_parameter("network.head.weight"), original.get_parameter("network.head.weight")
    )


def test_a_removal_that_changes_more_than_it_should_is_not_used(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("timm:test_resnet")
    real = pruning._remove_channels

    def wrong(network: Any, masked: Any, side: int, fraction: float) -> int:
        removed = real(network, masked, side, fraction)
        network.head.weight.data.mul_(1.01)
        return removed

    monkeypatch.setattr(pruning, "_remove_channels", wrong)

    assert prune(pixels_to_logits(model), 32, 0.25, None).part == "weights"
    with pytest.raises(ConfigError, match="no channels can be removed"):
        prune(pixels_to_logits(model), 32, 0.25, "channels")


@pytest.mark.parametrize("part", ["channels", "weights"])
def test_a_pruned_file_is_smaller_as_it_is_or_compressed_and_says_what_was_removed(
    make_model: MakeModel, part: pruning.Part
) -> None:
    model = make_model("cnn", data__image_size=16)
    whole = len(onnx_file.to_onnx(pixels_to_logits(model), 16).SerializeToString())

    small = export_model(model, "onnx", pruning=Pruning(0.5, part))

    facts = {entry.key: entry.value for entry in onnx.load_from_string(small.content).metadata_props}
    assert facts["pruned"] == small.pruned
    assert small.pruned.startswith("50%")
    assert [stage.name for stage in small.stages] == ["PyTorch", "PyTorch, pruned", "onnx"]
    assert len(zlib.compress(small.content)) < 0.8 * whole
    assert (len(small.content) < 0.8 * whole) == (part == "channels")


def test_the_library_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "is_installed", lambda package: False)

    pruning.check_package("weights")
    for part in ("channels", None):
        with pytest.raises(ConfigError, match="--prune-by weights"):
            pruning.check_package(part)
