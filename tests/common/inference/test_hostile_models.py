"""A stored model that is damaged, hostile or not its card's is refused in one line, and nothing is written.

Drives `common.inference.card`, `common.inference.weights`, `common.inference.network`.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from bract import app
from common.config.schema import RunConfig
from common.errors import ModelError
from common.inference.classifier import load_model
from tests.support.inference.stored_models import CLASSES, settings_of, shaded_images, store_model

MakeConfig = Callable[..., RunConfig]
Harm = Callable[[Path], None]


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets")


def card(**changes: Any) -> Harm:
    """Change keys of the card; None removes one."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / "card.json").read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / "card.json").write_text(json.dumps(kept))

    return harm


def prepared(**changes: Any) -> Harm:
    def harm(folder: Path) -> None:
        content = json.loads((folder / "card.json").read_text())["preprocessing"] | changes
        card(preprocessing={key: value for key, value in content.items() if value is not None})(folder)

    return harm


def raw_card(content: bytes) -> Harm:
    return lambda folder: (folder / "card.json").write_bytes(content) and None


def raw_weights(change: Callable[[bytes], bytes]) -> Harm:
    """Change the bytes of the weights, whose digest in the card follows."""

    def harm(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        card(model_sha256=hashlib.sha256(file.read_bytes()).hexdigest())(folder)

    return harm


def tensors(change: Callable[[np.ndarray], np.ndarray], classes: tuple[str, ...] = CLASSES, name: str = "") -> Harm:
    def harm(folder: Path) -> None:
        old = load_file(folder / "model.safetensors")
        new = {name or key: np.ascontiguousarray(change(array)) for key, array in old.items()}
        content = save(new, metadata={"classes": json.dumps(classes)})
        raw_weights(lambda _: content)(folder)

    return harm


def without_digest(harm: Harm) -> Harm:
    def both(folder: Path) -> None:
        harm(folder)
        card(model_sha256=None)(folder)

    return both


def _not_a_number(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[1, 2] = np.nan
    return array


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(5) + b"cos\nsystem\n." + bytes(4000))


def _missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _flipped(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _header_of_100_mb(content: bytes) -> bytes:
    return struct.pack("<Q", 100_000_000) + b'{"a":' + b" " * 100 + content


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:" + bytes(3000)
BAD_MODELS: dict[str, tuple[Harm, str]] = {
    "truncated weights": (raw_weights(lambda content: content[:-100]), "is cut short"),
    "weights of 5 bytes": (raw_weights(lambda content: content[:5]), "not a safetensors file"),
    "empty weights": (raw_weights(lambda content: b""), "not a safetensors file"),
    "weights and more": (raw_weights(lambda content: content + b"more"), "holds more than its card says"),
    "ONNX by another name": (raw_weights(lambda _: ONNX), "not a safetensors file"),
    "pickle by another name": (_pickled, "not a safetensors file"),
    "header of 100 MB": (raw_weights(_header_of_100_mb), "header would have 100,000,000 bytes"),
    "header that is not JSON": (raw_weights(lambda content: content[:8] + b"x" + content[9:]), "is damaged"),
    "no weights": (_missing, "is missing"),
    "one bit of the weights": (_flipped, "not the file of its card"),
    "NaN": (tensors(_not_a_number), "not finite, such as in 'head.weight'"),
    "NaN without a digest": (without_digest(tensors(_not_a_number)), "not finite"),
    "infinite": (tensors(lambda array: array * np.float32(np.inf)), "not finite"),
    "tensor of another name": (tensors(lambda array: array, name="head.bias"), "other tensors than its card says"),
    "tensor of another shape": (tensors(lambda array: array.T), "another type or shape"),
    "tensor of integers": (tensors(lambda array: array.astype(np.int32)), "another type or shape"),
    "other classes in the card": (card(classes=["cat", "dog", "rat"]), "other classes"),
    "classes in another order": (card(classes=["dog", "cat", "owl"]), "in another order"),
    "fewer classes": (without_digest(card(classes=["cat", "dog"])), "other classes"),
    "more classes": (tensors(lambda array: array, classes=("a", "b")), "other classes"),
    "one class": (card(classes=["cat"]), "classes"),
    "a class twice": (card(classes=["cat", "cat", "owl"]), "twice"),
    "another backbone": (card(backbone="timm:test_vit"), "backbone|preprocessing|tensors|scores"),
    "backbone of another hash": (card(backbone_sha256="ab" * 32), "abababababababab"),
    "another seed of random weights": (card(seed=5), "weights of timm:test_resnet here have"),
    "backbone that nobody knows": (card(backbone="timm:no_such_net"), "timm has no such model"),
    "backbone that is a file": (card(backbone="clip:/etc/passwd.json"), "not a file's"),
    "backbone outside of the folder": (card(backbone="../../evil"), "not a file's"),
    "weights outside of the folder": (card(weights="../../../etc/passwd"), "without a folder"),
    "weights at an absolute path": (card(weights="/etc/passwd"), "without a folder"),
    "weights on Windows": (card(weights="..\\evil.pth"), "without a folder"),
    "weights of the backbone that are not there": (card(weights="mine.pth"), "put it there, or give --weights"),
    "another head": (card(head="mlp"), "tensors are not those"),
    "another tuning": (card(tuning="full"), "does not go with its tuning"),
    "a tuning that is not one": (card(tuning="everything"), "not a tuning"),
    "a head that stayed at the clients": (card(personal="head"), "stays at each client"),
    "image of 100,000 pixels": (prepared(image_size=100_000), "image_size"),
    "image size that is not a number": (prepared(image_size="128"), "image_size"),
    "channels": (prepared(channels=7), "channels"),
    "another mean": (prepared(mean=[0.0, 0.0, 0.0]), "preprocessing.mean"),
    "another way to resize": (prepared(resize="stretched"), "preprocessing.resize"),
    "a step that nobody knows": (prepared(window="40/400"), "preprocessing.window"),
    "a step that is gone": (prepared(features=None), "preprocessing.features"),
    "tensors of terabytes": (card(tensors={"head.weight": [10**6, 10**6]}), "is cut short"),
    "negative shape": (card(tensors={"head.weight": [-3, -64]}), "card|cut short|shape"),
    "another format": (card(format=2), "format"),
    "card without tensors": (card(tensors=None), "tensors"),
    "card that is not JSON": (raw_card(b"\x00\x01"), "not a model's card"),
    "empty card": (raw_card(b""), "not a model's card"),
    "list": (raw_card(b"[1, 2]"), "not a model's card"),
    "deep card": (raw_card(b"[" * 100_000), "not a model's card"),
    "card of 17 MB": (raw_card(b" " * 17_000_000), "16 MB"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_refused_in_one_line(name: str, stored: Path, tmp_path: Path) -> None:
    harm, fragment = BAD_MODELS[name]
    folder = shutil.copytree(stored, tmp_path / "model")
    harm(folder)

    with pytest.raises(ModelError, match=fragment) as caught:
        load_model(tmp_path)

    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("name", ["truncated weights", "other classes in the card", "weights outside of the folder"])
def test_predict_refuses_a_bad_model_with_exit_code_2_and_writes_nothing(
    name: str, stored: Path, images: Path, tmp_path: Path
) -> None:
    harm, _ = BAD_MODELS[name]
    harm(shutil.copytree(stored, tmp_path / "run" / "model"))
    before = sorted(tmp_path.rglob("*"))

    result = CliRunner().invoke(
        app, ["predict", str(tmp_path / "run"), str(images), "--csv", str(tmp_path / "found.csv"), "--json"]
    )

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("ModelError: ")
    assert result.stderr.strip().count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_a_model_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name the folder of a run"):
        load_model(tmp_path)


def test_the_weights_of_a_backbone_are_found_beside_the_model_or_where_the_caller_says(
    images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    file = tmp_path / "mine.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict(), file)
    store_model(tmp_path / "run", make_config(settings_of(images, **{"model.weights": str(file)})))

    with pytest.raises(ModelError, match=r"mine\.safetensors: put it there"):
        load_model(tmp_path / "run")
    given = load_model(tmp_path / "run", weights=file).predict_proba(images / "cat" / "0.png")
    shutil.copy(file, tmp_path / "run" / "model")
    beside = load_model(tmp_path / "run").predict_proba(images / "cat" / "0.png")

    assert np.array_equal(given, beside)
