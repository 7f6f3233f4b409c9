"""BatchNorm with frozen statistics: the original layer in eval mode, and nothing that moves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from client.training.dp_sgd import PrivateStreams
from client.training.network_sgd import TrainingSet, train_network, train_network_privately
from client.training.round_settings import settings_of
from common.config.schema import RunConfig
from common.models.backbone import Backbone
from common.models.classifier import build_network, trained_arrays
from common.models.frozen_batch_norm import FrozenBatchNorm, freeze_batch_norm
from common.models.loading import build_backbone
from common.models.names import resolve_name
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream

# timm with and without fused activations, torchvision with and without an epsilon of its own.
WITH_BATCH_NORM = (
    "resnet18",
    "efficientnet_lite0",
    "timm:mobilenetv3_small_050",
    "mobilenet_v3_small",
    "torchvision:resnet18",
    # Its dense layers are made and left out, which takes seconds.
    pytest.param("torchvision:vgg11_bn", marks=pytest.mark.soak),
)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def randomised(layer: nn.Module) -> nn.Module:
    """Statistics and affine parts of every BatchNorm as pretraining would leave them: not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for norm in layer.modules():
        if isinstance(norm, _BATCH_NORM):
            with torch.no_grad():
                norm.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.2, 3.0, generator=generator)  # type: ignore[union-attr]
                if norm.weight is not None:
                    norm.weight.uniform_(-2.0, 2.0, generator=generator)
                    norm.bias.normal_(generator=generator)
    return layer.eval()


def body_of(backbone: str) -> Backbone:
    body = build_backbone(resolve_name(backbone), 64)
    randomised(body)
    return body


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
def test_every_frozen_layer_equals_the_original_in_eval_mode(backbone: str) -> None:
    body = body_of(backbone)
    originals = {name: layer for name, layer in body.named_modules() if isinstance(layer, _BATCH_NORM)}

    replaced = freeze_batch_norm(body)

    assert replaced == len(originals) > 0
    assert not any(isinstance(layer, _BATCH_NORM) for layer in body.modules())
    body.train()
    frozen = dict(body.named_modules())
    generator = torch.Generator().manual_seed(1)
    for name, original in originals.items():
        maps = torch.randn(4, original.num_features, 5, 5, generator=generator)
        torch.testing.assert_close(frozen[name](maps), original(maps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
def test_frozen_backbone_gives_the_features_of_the_original(backbone: str) -> None:
    """The whole chain, so that a forgotten activation or epsilon shows."""
    body = build_backbone(resolve_name(backbone), 64).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = body.pooled(body.feature_maps(pixels))

        freeze_batch_norm(body)

        after = body.pooled(body.feature_maps(pixels))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6 * float(before.abs().max()))


def test_frozen_layer_keeps_the_activation_that_is_fused_into_it() -> None:
    original = randomised(BatchNormAct2d(4, act_layer=nn.Hardswish))
    maps = torch.randn(3, 4, 2, 2)

    frozen = FrozenBatchNorm(original)  # type: ignore[arg-type]

    torch.testing.assert_close(frozen(maps), original(maps), rtol=1e-6, atol=1e-6)
    assert isinstance(frozen.act, nn.Hardswish)


def test_frozen_layer_treats_each_image_alone_and_moves_no_buffer_in_train_mode() -> None:
    frozen = FrozenBatchNorm(randomised(nn.BatchNorm2d(4))).train()  # type: ignore[arg-type]
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    maps = 100 * torch.randn(5, 4, 3, 3)

    together = frozen(maps)

    torch.testing.assert_close(together, torch.cat([frozen(one[None]) for one in maps]), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in frozen.named_buffers())


def test_frozen_layer_has_no_affine_parts_to_share_with_the_original() -> None:
    original = nn.BatchNorm2d(4, affine=False)

    frozen = FrozenBatchNorm(original)

    assert torch.equal(frozen.weight, torch.ones(4))
    assert torch.equal(frozen.bias, torch.zeros(4))


def test_batch_norm_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="without running statistics"):
        freeze_batch_norm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)))


def state_of(network: Any) -> dict[str, torch.Tensor]:
    """All that must stay: every buffer, and every parameter that is not trained."""
    untrained = {name: value for name, value in network.named_parameters() if name not in network.trained}
    return {name: value.detach().clone() for name, value in [*network.named_buffers(), *untrained.items()]}


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("tuning", ["head", "bias", "norm", "lora", "last:1", "full"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_training_moves_no_buffer_and_nothing_untrained(
    make_config: Callable[..., RunConfig], backbone: str, tuning: str, private: bool
) -> None:
    config = make_config(
        {
            "model.backbone": backbone,
            "model.weights": "random",
            "model.tuning": tuning,
            "data.image-size": 32,
            "training.augmentation": "flip",
            "training.learning-rate": 0.5,
            "training.rotation-weight": 0.0 if tuning == "head" else 0.3,
        }
    )
    network = build_network(config, (32, 32, 3), 3)
    randomised(network)
    network.train()  # as a careless caller would
    rng = np.random.default_rng(0)
    rows = TrainingSet(
        rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        np.arange(6) % 3,
        rng.integers(0, 256, (6, 32), dtype=np.uint8),
    )
    arrays, before = trained_arrays(network), state_of(network)
    settings = settings_of(config, server_round=1)
    assert any("running_var" in name for name in before)

    if private:
        plan = PrivacyPlan("dp-sgd", "image", 6, 0.9, 1, 1, 1.0, 1.0, 1e-5)
        after = train_network_privately(network, arrays, rows, plan, settings, PrivateStreams.fresh())
    else:
        after = train_network(network, arrays, rows, settings, public_stream(0, "batches"))

    assert list(after) == list(arrays)
    assert any(not np.array_equal(after[name], arrays[name]) for name in after)
    assert all(torch.equal(value, before[name]) for name, value in state_of(network).items())
