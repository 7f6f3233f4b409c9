"""CLIP: a tiny model made here, its image tower as backbone, its text tower as the start of the head."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from client.training.dp_sgd import PrivateStreams
from client.training.network_sgd import TrainingSet, network_logits, train_network, train_network_privately
from client.training.round_settings import settings_of
from common.config.schema import RunConfig
from common.errors import ConfigError, WeightsError
from common.models.backbone_info import backbone_info, load_backbone
from common.models.classifier import build_network, feature_network
from common.models.initialization import initial_arrays
from common.models.loading import build_backbone
from common.models.names import resolve_name
from common.models.providers.open_clip_models import PROMPT, clip_with_weights, text_head
from common.models.tuning import tuned_names
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream

CLASSES = ("cat", "red_panda", "violin")
SIDE = 32
ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Backbone name, weights file and open_clip's own model."""
    folder = tmp_path_factory.mktemp("clip")
    architecture, weights = folder / "tiny-clip.json", folder / "tiny.safetensors"
    architecture.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(architecture)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.create_model("tiny-clip", pretrained=None).eval()
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    save_file(model.state_dict(), weights)
    return f"clip:{architecture}", weights, model


def config_of(make_config: Callable[..., RunConfig], tiny: Any, **more: Any) -> RunConfig:
    settings = {"model.backbone": tiny[0], "model.weights": str(tiny[1]), "data.image-size": SIDE}
    return make_config(settings | {"training.learning-rate": 0.05} | more)


def pixels(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)


def own_scores(model: Any, images: np.ndarray) -> torch.Tensor:
    """Zero-shot logits as open_clip's own documentation computes them."""
    mean, std = (np.array(values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    inputs = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    tokens = open_clip.get_tokenizer("tiny-clip")([f"a photo of a {name}." for name in ("cat", "red panda", "violin")])
    with torch.inference_mode():
        image_features = model.encode_image(inputs)
        text_features = model.encode_text(tokens)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        scores: torch.Tensor = model.logit_scale.exp() * image_features @ text_features.T
    return scores


def test_image_tower_is_the_backbone(make_config: Callable[..., RunConfig], tiny: Any) -> None:
    config = config_of(make_config, tiny)
    body = load_backbone(config.backbone_spec)
    inputs = torch.randn(2, 3, SIDE, SIDE)

    torch.testing.assert_close(body.pooled(body.feature_maps(inputs)), tiny[2].encode_image(inputs))
    facts = backbone_info(config.backbone_spec)
    assert (facts.num_features, facts.image_size, facts.interpolation) == (24, SIDE, "bicubic")
    assert facts.mean == pytest.approx([255 * value for value in open_clip.OPENAI_DATASET_MEAN], abs=1e-3)


def test_text_head_starts_with_the_zero_shot_scores_of_open_clip(
    make_config: Callable[..., RunConfig], tiny: Any
) -> None:
    config = config_of(make_config, tiny, **{"model.head": "text"})
    extractor, images = feature_network(config.model, config.backbone_spec), pixels(5)
    features = extractor(extractor.prepare(images)).detach().numpy()

    arrays = initial_arrays(config, (24,), CLASSES)

    assert list(arrays) == ["head.weight"]
    np.testing.assert_allclose(features @ arrays["head.weight"].T, own_scores(tiny[2], images), rtol=1e-4, atol=1e-5)
    assert PROMPT == "a photo of a {}."


def test_text_head_above_a_tuned_tower_starts_with_the_same_scores(
    make_config: Callable[..., RunConfig], tiny: Any
) -> None:
    config = config_of(make_config, tiny, **{"model.head": "text", "model.tuning": "full"})
    arrays, images = initial_arrays(config, (SIDE, SIDE, 3), CLASSES), pixels(5)
    network = build_network(config, (SIDE, SIDE, 3), 3)

    logits = network_logits(network, arrays, images, settings_of(config, server_round=1))

    np.testing.assert_allclose(logits, own_scores(tiny[2], images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tuning", ["head", "bias", "norm", "lora", "last:1", "full"])
@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_tower_trains_in_every_way_of_tuning(
    make_config: Callable[..., RunConfig], tiny: Any, tuning: str, private: bool
) -> None:
    config = config_of(
        make_config, tiny, **{"model.head": "text", "model.tuning": tuning, "training.augmentation": "flip"}
    )
    network = build_network(config, (SIDE, SIDE, 3), 3)
    arrays = initial_arrays(config, (SIDE, SIDE, 3), CLASSES)
    digests = np.random.default_rng(1).integers(0, 256, (6, 32), dtype=np.uint8)
    rows, settings = TrainingSet(pixels(6), np.arange(6) % 3, digests), settings_of(config, server_round=1)

    if private:
        plan = PrivacyPlan("dp-sgd", "image", 6, 1.0, 2, 1, 1.0, 1.0, 1e-5)
        after = train_network_privately(network, arrays, rows, plan, settings, PrivateStreams.fresh())
    else:
        after = train_network(network, arrays, rows, settings, public_stream(0, "batches"))

    assert list(after) == list(arrays) == list(network.trained)
    assert all(np.isfinite(array).all() for array in after.values())
    assert any(name.startswith("body.") for name in after) == (tuning != "head")
    assert all(not np.array_equal(after[name], arrays[name]) for name in after if ".lora_A." not in name)


def test_groups_of_the_tower_are_its_blocks(make_config: Callable[..., RunConfig], tiny: Any) -> None:
    body = load_backbone(config_of(make_config, tiny).backbone_spec)

    last = tuned_names(body, "last:1", "tiny")

    assert len(body.layer_groups()) == 3
    assert "model.proj" in last
    assert all(name.startswith(("model.transformer.resblocks.1.", "model.ln_post", "model.proj")) for name in last)


def test_weights_of_the_image_tower_alone_are_enough_for_a_body_and_not_for_a_text_head(
    make_config: Callable[..., RunConfig], tiny: Any, tmp_path: Path
) -> None:
    file = tmp_path / "visual.safetensors"
    save_file({name: value for name, value in tiny[2].state_dict().items() if name.startswith("visual.")}, file)

    body = load_backbone(config_of(make_config, tiny, **{"model.weights": str(file)}).backbone_spec)

    assert torch.equal(body.model.proj, tiny[2].visual.proj)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="needs a file with both towers"):
        clip_with_weights(resolve_name(tiny[0]), str(file))


def test_text_head_is_refused_for_random_weights(make_config: Callable[..., RunConfig], tiny: Any) -> None:
    config = config_of(make_config, tiny, **{"model.head": "text", "model.weights": "random"})

    with pytest.raises(WeightsError, match="random ones know no class names"):
        initial_arrays(config, (24,), CLASSES)


def test_text_head_says_so_when_the_tokeniser_is_missing(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    def missing(name: str) -> None:
        raise OSError("not here")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)

    with pytest.raises(WeightsError, match=r"tokeniser of clip:.* cannot be loaded"):
        text_head(tiny[2], resolve_name(tiny[0]), CLASSES)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("clip:no-such-tower", None, "open_clip has no 'no-such-tower'"),
        ("clip:/nowhere/tower.json", None, "there is no file /nowhere/tower.json"),
        ("", 64, "it takes 32"),
    ],
)
def test_tower_is_refused_when_name_or_size_is_wrong(tiny: Any, name: str, side: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_backbone(resolve_name(name or tiny[0]), side)
