"""Backbone and head as one network: what it computes, starts from, and keeps to itself.

Drives `common.models.initialization`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.training.trainer import Trainer
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.models.backbone_info import backbone_info, describe, load_backbone, scaling_of
from common.models.classifier import (
    CnnNetwork,
    Network,
    build_network,
    feature_network,
    load_arrays,
    personal_names,
    trained_arrays,
)
from common.models.initialization import initial_arrays
from common.models.loading import build_backbone
from common.models.names import resolve_name

MakeConfig = Callable[..., RunConfig]
SHAPE, CLASSES = (32, 32, 3), ("a", "b", "c")


def config_of(make_config: MakeConfig, **more: Any) -> RunConfig:
    settings = {
        "model.backbone": "resnet18",
        "model.weights": "random",
        "model.tuning": "norm",
        "data.image-size": 32,
    }
    return make_config(settings | more)


def pixels(rows: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 32, 32, channels), dtype=np.uint8)


def test_network_is_prepared_pixels_body_scaling_and_head_in_a_row(make_config: MakeConfig) -> None:
    config = config_of(make_config)
    network = build_network(config, SHAPE, 3)
    body = load_backbone(config.backbone_spec)
    images = pixels(2)

    logits = network(network.prepare(images))

    mean, std = (np.array(values) for values in (body.preprocessing.mean, body.preprocessing.std))
    inputs = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2)).float()
    features = body.feature_maps(inputs).mean(dim=(2, 3))
    features = torch.nn.functional.layer_norm(features, (512,))
    torch.testing.assert_close(logits, features @ network.head.weight.T, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr,operator]


def test_grey_images_become_three_equal_channels(make_config: MakeConfig) -> None:
    network = build_network(config_of(make_config), SHAPE, 3)

    grey = network.prepare(pixels(2, channels=1))

    assert torch.equal(grey, network.prepare(np.repeat(pixels(2, channels=1), 3, axis=3)))


def test_network_on_cached_features_takes_them_as_they_are(make_config: MakeConfig) -> None:
    network = build_network(config_of(make_config, **{"model.tuning": "head", "model.head": "mlp"}), (20,), 3)
    rows = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)

    assert isinstance(network, Network)
    assert network.body is None
    assert torch.equal(network.prepare(rows), torch.from_numpy(rows))
    assert network.trained == ("head.dense.weight", "head.dense.bias", "head.output.weight", "head.output.bias")


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_head_on_cached_features_equals_the_whole_network(make_config: MakeConfig, head: str) -> None:
    """The feature cache must change nothing but speed."""
    cached = config_of(make_config, **{"model.tuning": "head", "model.head": head})
    whole = config_of(make_config, **{"model.tuning": "head", "model.head": head, "training.augmentation": "flip"})
    extractor, network = feature_network(cached.model, cached.backbone_spec), build_network(whole, SHAPE, 3)
    facts = backbone_info(cached.backbone_spec)
    size = facts.num_flattened if head == "mlp" else facts.num_features
    images = pixels(3)

    features = extractor(extractor.prepare(images))

    assert features.shape == (3, size)
    torch.testing.assert_close(network(network.prepare(images)), network.head(features))


def test_scaling_follows_what_is_trained(make_config: MakeConfig) -> None:
    assert scaling_of(config_of(make_config, **{"model.tuning": "head"}).model) == "power"
    assert scaling_of(config_of(make_config, **{"model.tuning": "head", "model.head": "mlp"}).model) == "standard"
    assert scaling_of(config_of(make_config).model) == "standard"
    assert scaling_of(config_of(make_config, **{"model.head": "text"}).model) == "unit"


def test_initial_arrays_start_from_the_backbone_and_a_head_of_zeros(make_config: MakeConfig) -> None:
    config = config_of(make_config, **{"training.rotation-weight": 0.5})

    arrays = initial_arrays(config, SHAPE, CLASSES)

    body = dict(load_backbone(config.backbone_spec).named_parameters())
    assert not arrays["head.weight"].any()
    assert not arrays["rotation.weight"].any()
    assert arrays["rotation.weight"].shape == (4, 512)
    tuned = [name for name in arrays if name.startswith("body.")]
    assert tuned
    assert all(np.array_equal(arrays[name], body[name.removeprefix("body.")].numpy()) for name in tuned)


def test_initial_arrays_of_lora_and_mlp_have_the_spread_of_he_and_follow_the_seed(make_config: MakeConfig) -> None:
    settings = {"model.tuning": "lora", "model.head": "mlp"}
    torch.manual_seed(1)
    first = initial_arrays(config_of(make_config, **settings), SHAPE, CLASSES)
    torch.manual_seed(2)
    again = initial_arrays(config_of(make_config, **settings), SHAPE, CLASSES)
    other = initial_arrays(config_of(make_config, **settings, seed=1), SHAPE, CLASSES)

    drawn = [name for name in first if ".lora_A." in name or name in {"head.dense.weight", "head.output.weight"}]
    assert len(drawn) > 10
    for name, array in first.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, again[name])
        if name not in drawn:
            assert not array.any()
            continue
        assert not np.array_equal(array, other[name])
        wanted = np.sqrt(2 / np.prod(array.shape[1:]))
        assert abs(array.std() / wanted - 1) < 5 / np.sqrt(2 * array.size)


def test_initial_arrays_of_a_text_head_need_clip(make_config: MakeConfig) -> None:
    config = config_of(make_config, **{"model.tuning": "head", "model.head": "text"})

    with pytest.raises(ConfigError, match=r"needs a CLIP backbone, got model\.backbone='resnet18'"):
        initial_arrays(config, (512,), CLASSES)


def test_load_arrays_and_trained_arrays_are_inverse_and_share_no_memory(make_config: MakeConfig) -> None:
    network = build_network(config_of(make_config), SHAPE, 3)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(array.shape).astype(np.float32) for name, array in trained_arrays(network).items()
    }

    load_arrays(network, arrays)

    back = trained_arrays(network)
    assert list(back) == list(network.trained)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    for name in back:
        back[name] += 1
    assert all(np.array_equal(array, arrays[name]) for name, array in trained_arrays(network).items())


def test_network_of_a_trainer_is_built_once_and_anew_for_another_run(make_config: MakeConfig) -> None:
    first = Trainer(config_of(make_config), SHAPE, CLASSES)._network()
    rotated = config_of(make_config, **{"training.rotation-weight": 1.0})

    assert Trainer(config_of(make_config, **{"num-rounds": 7}), SHAPE, CLASSES)._network() is first
    assert Trainer(config_of(make_config), SHAPE, (*CLASSES, "more"))._network() is not first
    assert "rotation.weight" in Trainer(rotated, SHAPE, CLASSES)._network().trained


def test_rotation_logits_are_refused_without_the_task(make_config: MakeConfig) -> None:
    network = build_network(config_of(make_config), SHAPE, 3)
    assert isinstance(network, Network)

    with pytest.raises(ConfigError, match=r"training\.rotation-weight is 0"):
        network.rotation_logits(network.prepare(pixels(1)))


def test_network_from_scratch_is_trained_whole(make_config: MakeConfig) -> None:
    network = build_network(make_config({"model.backbone": "cnn"}), (8, 8, 1), 3)

    assert isinstance(network, CnnNetwork)
    assert network.trained == tuple(name for name, _ in network.named_parameters())


def test_personal_head_is_the_head_and_nothing_else(make_config: MakeConfig) -> None:
    config = config_of(make_config, **{"model.personal": "head"})

    assert personal_names(build_network(config, SHAPE, 3), config.model) == {"head.weight"}
    config = config_of(make_config)
    assert personal_names(build_network(config, SHAPE, 3), config.model) == frozenset()


def test_personal_batchnorm_is_every_trained_affine_part_of_a_batchnorm(make_config: MakeConfig) -> None:
    norm = config_of(make_config, **{"model.personal": "batchnorm-affine"})
    last = config_of(make_config, **{"model.personal": "batchnorm-affine", "model.tuning": "last:1"})

    everything = personal_names(build_network(norm, SHAPE, 3), norm.model)

    assert everything == {name for name in build_network(norm, SHAPE, 3).trained if name.startswith("body.")}
    assert len(everything) == 40
    of_last = personal_names(build_network(last, SHAPE, 3), last.model)
    assert of_last == {name for name in everything if ".layer4." in name}


def test_personal_batchnorm_is_refused_where_none_is_trained(make_config: MakeConfig) -> None:
    for settings in (
        {"model.backbone": "vit_tiny_patch16_224"},
        {"model.tuning": "lora"},
    ):
        config = config_of(make_config, **settings, **{"model.personal": "batchnorm-affine"})
        with pytest.raises(ConfigError, match="no BatchNorm is trained"):
            personal_names(build_network(config, SHAPE, 3), config.model)


def test_vgg_has_no_dense_layers_left() -> None:
    body = build_backbone(resolve_name("vgg16"), 32)

    # 13 convolutions: what the literature calls VGG16's convolutional base.
    assert sum(parameter.numel() for parameter in body.parameters()) == 14_714_688


def test_describe_says_how_an_image_becomes_features(make_config: MakeConfig) -> None:
    config, cnn = config_of(make_config, **{"model.head": "mlp"}), make_config({"model.backbone": "cnn"})
    facts = describe(config.model, config.backbone_spec, SHAPE)

    assert (facts["image_size"], facts["channels"]) == (32, 3)
    assert facts["pooling"] == "none, maps are flattened"
    assert facts["features"] == "centred and scaled to length sqrt(d) for each image"
    assert describe(cnn.model, cnn.backbone_spec, (8, 8, 1))["channels"] == 1


@pytest.mark.parametrize(
    ("settings", "depth"),
    [
        ({"privacy.mechanism": "none"}, 4),
        ({"privacy.mechanism": "client-dp"}, 4),
        ({"privacy.mechanism": "dp-sgd"}, 2),
        ({"privacy.mechanism": "none", "model.cnn-depth": 2}, 2),
        ({"privacy.mechanism": "dp-sgd", "model.cnn-depth": 3}, 3),
    ],
)
def test_depth_of_the_network_from_scratch_is_one_at_server_and_clients(
    make_config: MakeConfig, settings: dict[str, Scalar], depth: int
) -> None:
    config = make_config({"model.backbone": "cnn"} | settings)

    network, start = build_network(config, (96, 96, 1), 3), initial_arrays(config, (96, 96, 1), ("a", "b", "c"))

    assert sum(name.startswith("conv") for name in network.trained) == 2 * depth
    assert {name: array.shape for name, array in start.items()} == {
        name: array.shape for name, array in trained_arrays(network).items()
    }
