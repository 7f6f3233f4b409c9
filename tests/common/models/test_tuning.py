"""What each way of tuning trains: exactly that travels, and nothing else."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.models.backbone import Backbone, Preprocessing
from common.models.backbone_info import load_backbone
from common.models.classifier import Network, build_network
from common.models.initialization import initial_arrays
from common.models.tuning import TUNINGS, add_lora, possible_tunings, tuned_names

MakeConfig = Callable[..., RunConfig]
FAMILIES = ("vgg16", "resnet18", "mobilenet_v3_small", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def body_of(make_config: MakeConfig) -> Callable[[str], Backbone]:
    """Each family's backbone, built once."""
    held: dict[str, Backbone] = {}

    def get(backbone: str) -> Backbone:
        if backbone not in held:
            held[backbone] = load_backbone(config_of(make_config, backbone).backbone_spec)
        return held[backbone]

    return get


def config_of(make_config: MakeConfig, backbone: str, tuning: str = "full") -> RunConfig:
    return make_config(
        {"model.backbone": backbone, "model.weights": "random", "model.tuning": tuning, "data.image-size": 32}
    )


# One parameter that is in and one that is not, for each backbone and way of tuning.
IN_AND_OUT = [
    ("vgg16", "bias", "model.features.0.bias", "model.features.0.weight"),
    ("vgg16", "last:1", "model.features.28.weight", "model.features.26.weight"),
    ("resnet18", "bias", "model.layer1.0.bn1.bias", "model.layer1.0.bn1.weight"),
    ("resnet18", "norm", "model.bn1.weight", "model.conv1.weight"),
    ("resnet18", "last:1", "model.layer4.1.conv2.weight", "model.layer3.1.conv2.weight"),
    ("mobilenet_v3_small", "bias", "model.features.4.block.2.fc1.bias", "model.features.4.block.2.fc1.weight"),
    ("mobilenet_v3_small", "norm", "model.features.12.1.weight", "model.features.12.0.weight"),
    ("mobilenet_v3_small", "last:1", "model.features.12.0.weight", "model.features.11.block.0.0.weight"),
    ("efficientnet_lite0", "norm", "model.bn2.weight", "model.conv_head.weight"),
    ("efficientnet_lite0", "last:1", "model.conv_head.weight", "model.blocks.0.0.bn1.weight"),
    ("convnext_atto", "bias", "model.stages.0.blocks.0.conv_dw.bias", "model.stages.0.blocks.0.conv_dw.weight"),
    ("convnext_atto", "norm", "model.stages.0.blocks.0.norm.weight", "model.stages.0.blocks.0.mlp.fc1.weight"),
    ("convnext_atto", "last:1", "model.head.norm.weight", "model.stages.3.blocks.1.mlp.fc1.weight"),
    ("convnext_atto", "last:2", "model.stages.3.blocks.1.mlp.fc1.weight", "model.stages.2.blocks.0.mlp.fc1.weight"),
    ("vit_tiny_patch16_224", "bias", "model.blocks.0.attn.qkv.bias", "model.blocks.0.attn.qkv.weight"),
    ("vit_tiny_patch16_224", "norm", "model.blocks.11.norm2.weight", "model.cls_token"),
    ("vit_tiny_patch16_224", "last:1", "model.blocks.11.attn.qkv.weight", "model.blocks.10.attn.qkv.weight"),
]


@pytest.mark.parametrize(("backbone", "tuning", "inside", "outside"), IN_AND_OUT)
def test_tuned_names_hold_what_the_way_of_tuning_says(
    body_of: Callable[[str], Backbone], backbone: str, tuning: str, inside: str, outside: str
) -> None:
    body = body_of(backbone)
    everything = [name for name, _ in body.named_parameters()]

    names = tuned_names(body, tuning, backbone)

    assert inside in names
    assert outside not in names
    assert outside in everything
    assert names == [name for name in everything if name in set(names)]


@pytest.mark.parametrize("backbone", FAMILIES)
def test_tuned_names_of_head_are_none_and_of_full_are_all(body_of: Callable[[str], Backbone], backbone: str) -> None:
    body = body_of(backbone)

    assert tuned_names(body, "head", backbone) == []
    assert tuned_names(body, "full", backbone) == [name for name, _ in body.named_parameters()]


@pytest.mark.parametrize("backbone", FAMILIES)
def test_bias_is_every_bias_and_norm_is_every_affine_part(body_of: Callable[[str], Backbone], backbone: str) -> None:
    body = body_of(backbone)
    everything = dict(body.named_parameters())

    assert tuned_names(body, "bias", backbone) == [name for name in everything if name.endswith(".bias")]
    if backbone != "vgg16":
        norms = tuned_names(body, "norm", backbone)
        assert all(everything[name].ndim == 1 for name in norms)
        assert len(norms) % 2 == 0


@pytest.mark.parametrize("backbone", FAMILIES)
def test_last_grows_with_its_number_up_to_everything(body_of: Callable[[str], Backbone], backbone: str) -> None:
    body = body_of(backbone)
    groups = len(body.layer_groups())

    sets = [set(tuned_names(body, f"last:{n}", backbone)) for n in range(1, groups + 1)]

    assert all(smaller < larger for smaller, larger in pairwise(sets))
    assert sets[-1] == {name for name, _ in body.named_parameters()}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_last_is_refused_beyond_the_number_of_groups(body_of: Callable[[str], Backbone], backbone: str) -> None:
    body = body_of(backbone)
    groups = len(body.layer_groups())

    with pytest.raises(ConfigError, match=f"{backbone} has {groups} groups of layers, so last:1 to last:{groups}"):
        tuned_names(body, f"last:{groups + 1}", backbone)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_possible_tunings_are_those_that_give_names(body_of: Callable[[str], Backbone], backbone: str) -> None:
    body = body_of(backbone)

    possible = possible_tunings(body)

    assert possible == [tuning for tuning in TUNINGS if (backbone, tuning) != ("vgg16", "norm")]


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet_v3_small", "efficientnet_lite0", "convnext_atto", "resnet18"])
def test_lora_touches_no_grouped_convolution_and_everything_else(make_config: MakeConfig, backbone: str) -> None:
    body = load_backbone(config_of(make_config, backbone).backbone_spec)
    takes = {
        name
        for name, layer in body.model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    grouped = {name for name, layer in body.model.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1}
    assert backbone in {"vgg16", "resnet18"} or grouped

    add_lora(body, rank=4)

    names = tuned_names(body, "lora", backbone)
    touched = {name.removeprefix("model.").partition(".lora_")[0] for name in names}
    assert touched == takes
    assert len(names) == 2 * len(takes)
    assert all(body.get_parameter(name).shape[0] == 4 for name in names if "lora_A" in name)


def test_lora_starts_where_the_backbone_is(make_config: MakeConfig) -> None:
    body = load_backbone(config_of(make_config, "mobilenet_v3_small").backbone_spec)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = body.feature_maps(pixels)

    add_lora(body, rank=4)

    torch.testing.assert_close(body.eval().feature_maps(pixels), before, rtol=1e-6, atol=1e-6)


class _Twins(Backbone):
    """A grouped convolution whose name ends like that of an ungrouped one."""

    def __init__(self) -> None:
        inner = nn.Sequential()
        inner.add_module("conv", nn.Conv2d(8, 8, 3, groups=8))
        outer = nn.Sequential()
        outer.add_module("conv", nn.Conv2d(3, 8, 1))
        outer.add_module("block", inner)
        super().__init__(outer, Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic", 32))


def test_lora_leaves_a_grouped_convolution_alone_whose_name_ends_like_another() -> None:
    body = _Twins()

    add_lora(body, rank=2)

    assert [name for name, _ in body.named_parameters() if ".lora_" in name] == [
        "model.conv.lora_A.default.weight",
        "model.conv.lora_B.default.weight",
    ]


def test_lora_is_refused_where_no_layer_takes_it() -> None:
    body = Backbone(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), Preprocessing((0.0,) * 3, (1.0,) * 3, "bicubic", 32))

    with pytest.raises(ConfigError, match="no linear layer and no ungrouped convolution"):
        add_lora(body, rank=2)


@pytest.mark.parametrize("tuning", ["bias", "norm", "lora", "last:1", "full"])
def test_trained_names_are_exactly_what_travels_and_what_takes_a_gradient(make_config: MakeConfig, tuning: str) -> None:
    config = config_of(make_config, "mobilenet_v3_small", tuning)
    network = build_network(config, (32, 32, 3), 5)
    assert isinstance(network, Network)

    arrays = initial_arrays(config, (32, 32, 3), ("a", "b", "c", "d", "e"))

    named = dict(network.named_parameters())
    assert tuple(arrays) == network.trained
    assert network.trained[-1] == "head.weight"
    assert {name for name, parameter in named.items() if parameter.requires_grad} == set(network.trained)
    assert {name: array.shape for name, array in arrays.items()} == {
        name: tuple(named[name].shape) for name in network.trained
    }
    assert network.body is not None
    tuned = tuned_names(network.body, tuning, "mobilenet_v3_small")
    assert [f"body.{name}" for name in tuned] == list(network.trained[:-1])
    assert not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in arrays)
