"""Backbones by name: what stands behind one, what it wants and gives, what clients agree on.

Drives `common.models.backbone`, `common.models.names`, `common.models.providers.registry`,
`common.models.providers.timm_models`, `common.models.providers.torchvision_models`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ConfigError, WeightsError
from common.models.backbone_info import backbone_info, load_backbone
from common.models.loading import build_backbone, load_pretrained
from common.models.names import SHORT_NAMES, known_backbones, resolve_name
from common.models.providers.registry import PROVIDERS, BackboneName, Provider, ProviderModule
from common.models.weight_files import hash_tensors
from tests.support.data.weights import SMALL, MakeConfig, classifier_tensors, config_of


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return classifier_tensors()


# Names


@pytest.mark.parametrize(
    ("given", "provider", "architecture"),
    [
        ("vgg16", "timm", "vgg16"),
        ("resnet18", "timm", "resnet18"),
        ("mobilenet_v3_small", "torchvision", "mobilenet_v3_small"),
        ("efficientnet_lite0", "timm", "tf_efficientnet_lite0"),
        ("timm:resnet18", "timm", "resnet18"),
        ("torchvision:resnet18", "torchvision", "resnet18"),
        ("clip:ViT-B-32/openai", "clip", "ViT-B-32/openai"),
        ("regnetx_002", "timm", "regnetx_002"),
        ("regnet_y_400mf", "torchvision", "regnet_y_400mf"),
    ],
)
def test_resolve_name_finds_the_provider(given: str, provider: str, architecture: str) -> None:
    name = resolve_name(given)

    assert (name.given, name.provider, name.architecture) == (given, provider, architecture)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("vgg11", "is in timm and in torchvision: write timm:vgg11 or torchvision:vgg11"),
        ("resnet19", "is not known to timm or torchvision.*; similar names are torchvision:"),
        ("keras:resnet18", "write timm:<name>, torchvision:<name>.* or .*:<name>, or one of cnn, efficientnet_lite0"),
        ("timm:", "write timm:<name>"),
    ],
)
def test_resolve_name_says_what_to_write_when_a_name_is_wrong(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_name(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("timm:resnet19", "timm has no such model"),
        ("torchvision:resnet19", "torchvision has no such classifier; resnet"),
        ("torchvision:inception_v3", "of torchvision Bract knows ResNet"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of inception_v3:FutureWarning")
def test_build_body_says_what_there_is_when_it_knows_no_such_architecture(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_backbone(resolve_name(given), None)


def test_known_backbones_lists_every_short_name() -> None:
    assert set(SHORT_NAMES) < {row[0] for row in known_backbones()}


def test_every_provider_offers_what_the_contract_asks_for() -> None:
    wanted = {name for name in vars(ProviderModule) if not name.startswith("_")}

    assert wanted == {"build_backbone", "fetch_tensors", "knows", "similar_names"}
    for row in PROVIDERS.values():
        module = row.load()
        assert all(callable(getattr(module, name)) for name in wanted), row.file


def test_a_row_and_a_file_are_all_that_a_new_provider_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    body, module = build_backbone(resolve_name("torchvision:resnet18"), 32), ModuleType("own_models")
    module.__dict__.update(
        build_backbone=lambda name, side: body,
        fetch_tensors=lambda name: body.model.state_dict(),
        knows=lambda architecture: architecture == "tiny",
        similar_names=lambda architecture: ["tiny"],
    )
    monkeypatch.setitem(sys.modules, "common.models.providers.own_models", module)
    monkeypatch.setitem(PROVIDERS, "own", Provider("own:<name>", "models of our own", "own_models"))

    assert resolve_name("tiny") == BackboneName("tiny", "own", "tiny")
    assert ("own:<name>", "models of our own", "hub, or a file in model.weights") in known_backbones()
    assert load_pretrained(resolve_name("own:tiny"), "", side=None, seed=0) == (body, "own hub")
    with pytest.raises(ConfigError, match=r"<name> or own:<name>, or one of cnn"):
        resolve_name("other:tiny")


# What a backbone wants and gives


@pytest.mark.parametrize(
    ("backbone", "features", "mapped"),
    [
        pytest.param("vgg16", 512, 512 * 2 * 2, marks=pytest.mark.soak),
        ("resnet18", 512, 512 * 2 * 2),
        ("mobilenet_v3_small", 576, 576 * 2 * 2),
        ("convnext_atto", 320, 320 * 2 * 2),
        ("vit_tiny_patch16_224", 192, 192),
        ("torchvision:resnet18", 512, 512 * 2 * 2),
        pytest.param("torchvision:vgg11", 512, 512 * 2 * 2, marks=pytest.mark.soak),
        ("torchvision:convnext_tiny", 768, 768 * 2 * 2),
    ],
)
def test_backbone_facts_give_the_number_of_features(
    make_config: MakeConfig, backbone: str, features: int, mapped: int
) -> None:
    facts = backbone_info(config_of(make_config, backbone, **{"data.image-size": 64}).backbone_spec)

    assert (facts.num_features, facts.num_flattened, facts.image_size) == (features, mapped, 64)


def test_preprocessing_comes_from_the_backbones_own_configuration(make_config: MakeConfig) -> None:
    imagenet = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    own = {
        "resnet18": (*imagenet, "bicubic", 128),
        "mobilenet_v3_small": (*imagenet, "bilinear", 128),
        "vit_tiny_patch16_224": ((127.5,) * 3, (127.5,) * 3, "bicubic", 224),
        "efficientnet_lite0": ((127.0,) * 3, (128.0,) * 3, "bicubic", 128),
    }
    for backbone, (mean, std, interpolation, side) in own.items():
        facts = build_backbone(resolve_name(backbone), None).preprocessing
        assert facts.mean == pytest.approx(mean)
        assert facts.std == pytest.approx(std)
        assert (facts.interpolation, facts.image_size) == (interpolation, side)


@pytest.mark.parametrize(
    ("backbone", "side", "words"),
    [
        ("vit_tiny_patch16_224", 40, "patches are 16 pixels wide, so take a multiple, such as 32"),
        ("vgg16", 16, "vgg16 cannot take images of this size"),
        ("timm:swin_tiny_patch4_window7_224", 96, "cannot take images of this size"),
        ("torchvision:vit_b_32", 96, "it takes 224"),
    ],
)
def test_backbone_facts_refuse_a_size_that_the_backbone_cannot_take(
    make_config: MakeConfig, backbone: str, side: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        backbone_info(config_of(make_config, backbone, **{"data.image-size": side}).backbone_spec)


def test_loaded_backbone_is_frozen_and_in_eval_mode(make_config: MakeConfig) -> None:
    body = load_backbone(config_of(make_config, SMALL).backbone_spec)

    assert not body.training
    assert not any(parameter.requires_grad for parameter in body.parameters())
    assert not any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in body.modules())


# What clients agree on


def test_pinned_hash_is_accepted_when_it_is_right_and_refused_when_it_is_not(make_config: MakeConfig) -> None:
    right = backbone_info(config_of(make_config, SMALL).backbone_spec).sha256
    wrong = "0" * 64

    load_backbone(config_of(make_config, SMALL, **{"model.weights-sha256": right}).backbone_spec)
    backbone_info(config_of(make_config, SMALL, **{"model.weights-sha256": right}).backbone_spec)
    for ask in (backbone_info, load_backbone):
        with pytest.raises(WeightsError, match=f"asks for {wrong[:16]}.*here have {right[:16]}"):
            ask(config_of(make_config, SMALL, **{"model.weights-sha256": wrong}).backbone_spec)


def test_backbone_facts_notice_that_the_file_has_changed(
    make_config: MakeConfig, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    config = config_of(make_config, SMALL, file)
    before = backbone_info(config.backbone_spec)

    save_file(tensors | {"conv_stem.weight": 2 * tensors["conv_stem.weight"]}, file)
    os.utime(file, ns=(1, 1))  # same size, another time

    assert backbone_info(config.backbone_spec).sha256 != before.sha256
    assert backbone_info(config.backbone_spec).sha256 == hash_tensors(
        load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)[0].state_dict()
    )


def test_backbone_facts_are_remembered_across_processes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from common.models import backbone_info as backbones

    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    config = config_of(make_config, SMALL, **{"seed": 77})
    first = backbone_info(config.backbone_spec)
    backbones._remembered.cache_clear()  # as a new process starts
    with monkeypatch.context() as no_loading:
        no_loading.setattr(backbones, "load_pretrained", None)
        assert backbone_info(config.backbone_spec) == first

    # A home elsewhere gets a file of its own, for processes that start there.
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "other"))
    assert backbone_info(config.backbone_spec) == first
    assert len(list((tmp_path / "other").rglob("backbones/*.json"))) == 1
