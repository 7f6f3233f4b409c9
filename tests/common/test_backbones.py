"""Pretrained weights: the right ones, in the right places, and never executed."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from common.errors import WeightsError
from common.models.backbones import BACKBONES, check_weights_file, hash_tensors, load_backbone

NAME = "efficientnet_lite0"
# ImageNet-1k classes: monastery, palace; daisy.
_EXPECTED = {"china.jpg": {663, 698}, "flower.jpg": {985}}


@pytest.fixture(scope="module")
def backbone() -> Any:
    """The whole timm model, its ImageNet classifier included."""
    return load_backbone(NAME)


@pytest.fixture(scope="module")
def tensors(backbone: Any) -> dict[str, torch.Tensor]:
    """The weights on record, under timm's names."""
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("photo", sorted(_EXPECTED))
def test_backbone_recognises_a_photo(backbone: Any, photo: str) -> None:
    """Only weights in their places, with the right preprocessing, can do that."""
    info = BACKBONES[NAME]
    image = ImageOps.fit(Image.fromarray(load_sample_image(photo)), (224, 224), method=Image.Resampling.BICUBIC)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - info.mean) / info.std

    with torch.inference_mode():
        scores = backbone(pixels).softmax(dim=1)[0]

    best = scores.topk(5).indices.tolist()
    assert best[0] in _EXPECTED[photo]
    assert _EXPECTED[photo] <= set(best)
    assert scores.max() > 0.15


def test_backbone_is_frozen(backbone: Any) -> None:
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_backbone_has_the_declared_number_of_features(backbone: Any) -> None:
    with torch.inference_mode():
        maps = backbone.forward_features(torch.zeros(2, 3, 64, 64))

    assert maps.shape == (2, BACKBONES[NAME].num_features, 2, 2)


def test_load_backbone_takes_safetensors_with_the_names_of_timm(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)

    loaded = load_backbone(NAME, str(file)).state_dict()

    assert list(loaded) == list(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_load_backbone_refuses_weights_that_differ_in_one_number(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "weights.safetensors"
    changed = tensors["conv_stem.weight"].clone()
    changed[0, 0, 0, 0] += 1e-4
    save_file(tensors | {"conv_stem.weight": changed}, file)

    with pytest.raises(WeightsError, match=f"on record is {BACKBONES[NAME].weights_sha256[:16]}"):
        load_backbone(NAME, str(file))


def test_load_backbone_refuses_weights_of_another_network(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3, 4)}, file)

    with pytest.raises(WeightsError, match="holds 1 tensors that do not fit efficientnet_lite0, which has 296"):
        load_backbone(NAME, str(file))


def test_load_backbone_refuses_two_layers_that_were_swapped(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "weights.pth"
    names = ["bn1.weight", "bn1.bias"]
    torch.save(tensors | {names[0]: tensors[names[1]], names[1]: tensors[names[0]]}, file)

    with pytest.raises(WeightsError, match="have hash"):
        load_backbone(NAME, str(file))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_load_backbone_refuses_a_file_it_cannot_read(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)

    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone(NAME, str(file))


class _Payload:
    """Unpickling it creates a file: what a malicious checkpoint would do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.trace,)  # type: ignore[return-value]


def test_load_backbone_does_not_execute_a_pickle(tmp_path: Path) -> None:
    trace, control = tmp_path / "executed", tmp_path / "control"
    plain, zipped = tmp_path / "plain.pth", tmp_path / "zipped.pth"
    plain.write_bytes(pickle.dumps({"weight": _Payload(trace)}))
    torch.save({"weight": _Payload(trace)}, zipped)
    pickle.loads(pickle.dumps(_Payload(control)))  # noqa: S301
    assert control.exists(), "the payload must work where it is not refused"

    for file in (plain, zipped):
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load_backbone(NAME, str(file))
    assert not trace.exists()


@pytest.mark.parametrize("checkpoint", [{"epoch": 3}, {"state_dict": {"w": torch.zeros(1)}}], ids=["number", "nested"])
def test_load_backbone_refuses_a_checkpoint_that_holds_more_than_tensors(
    tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(checkpoint, file)

    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_backbone(NAME, str(file))


def test_load_backbone_refuses_weights_in_bfloat16(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file)

    with pytest.raises(WeightsError, match="have hash"):
        load_backbone(NAME, str(file))


def test_check_weights_file_names_what_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"

    for weights in (missing, tmp_path):
        with pytest.raises(WeightsError, match=f"there is no file {weights}"):
            check_weights_file(str(weights))
    with pytest.raises(WeightsError, match="there is no file"):
        load_backbone(NAME, str(missing))
    check_weights_file("")


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
