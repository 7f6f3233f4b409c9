"""A stored model sees images as training does, and scores them as the run did.

Drives `common.inference.images`, `common.inference.network`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from common.config.schema import RunConfig
from common.data.preprocessing import prepare
from common.errors import DataError
from common.inference.classifier import load_model
from tests.support.data.hostile_files import GOOD, picture
from tests.support.inference.stored_models import CLASSES, settings_of, shaded_images, store_model
from tests.support.paths import ROOT

MakeConfig = Callable[..., RunConfig]
NETWORKS: dict[str, dict[str, Any]] = {
    "head": {},
    "packaged head": {"backbone": "efficientnet_lite0"},
    "mlp": {"model__head": "mlp"},
    "augmented head": {"training__augmentation": "flip"},
    "norm": {"model__tuning": "norm"},
    "personal norm": {"model__tuning": "full", "model__personal": "batchnorm-affine"},
    "rotations": {"model__tuning": "norm", "training__rotation_weight": 0.5},
    "lora": {"model__tuning": "lora", "model__lora_rank": 3},
    "another seed": {"model__tuning": "last:1", "seed": 7},
    "tokens": {"backbone": "timm:test_vit"},
    "cnn": {"backbone": "cnn"},
}


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, with an image of every format among them."""
    root = shaded_images(tmp_path_factory.mktemp("images") / "pets")
    for number, (name, build) in enumerate(sorted(GOOD.items())):
        build(picture(90, seed=number), root / "owl" / f"x-{name}")
    return root


@pytest.mark.numerical
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stored_model_scores_images_as_its_run_did(
    name: str, images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(settings_of(images, **NETWORKS[name]))
    trainer = store_model(tmp_path, config)
    prepared = prepare(config)
    files = sorted(file for file in images.rglob("*") if file.is_file())

    model = load_model(tmp_path)

    inputs = prepared.inputs[np.arange(len(files))]
    # To the bit: these are the very pixels or features that the clients train on.
    seen = model.features(files) if config.caches_features else model.pixels(files)
    assert np.array_equal(seen, inputs)
    arrays = trainer.initial_personal() | load_file(tmp_path / "model" / "model.safetensors")
    scores = trainer.logits(arrays, inputs)
    assert model.classes == CLASSES
    assert scores.std() > 0.01
    np.testing.assert_allclose(model.logits(files), scores, rtol=1e-4, atol=1e-4)
    assert model.predict(files) == [CLASSES[at] for at in scores.argmax(axis=1)]


def test_paths_opened_images_and_arrays_give_the_same_scores(stored: Path, images: Path) -> None:
    model, file = load_model(stored), images / "cat" / "0.png"
    opened = Image.open(file)

    forms: list[Any] = [str(file), file, opened, np.asarray(opened), [file], np.asarray(opened)[None]]
    scores = [model.logits(form) for form in forms]

    assert all(np.array_equal(scores[0], other) for other in scores[1:])
    assert scores[0].shape == (1, 3)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_an_opened_image_of_any_kind_is_read_as_its_file(name: str, stored: Path, tmp_path: Path) -> None:
    GOOD[name](picture(90, seed=3), tmp_path / name)
    model = load_model(stored)

    with Image.open(tmp_path / name) as opened:
        assert np.array_equal(model.pixels(opened), model.pixels(tmp_path / name))


def test_arrays_of_one_channel_and_of_16_bits_are_read_as_files_are(stored: Path) -> None:
    model = load_model(stored)
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)

    found = [model.pixels([array]) for array in (grey, grey[:, :, None], grey.astype(np.uint16) * 256 + 9)]

    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.numerical
def test_an_image_has_the_same_scores_alone_and_among_others(stored: Path, images: Path) -> None:
    model, files = load_model(stored), sorted(images.rglob("*.png")) * 8

    together = model.logits(files)

    assert len(files) > 64
    assert np.array_equal(together[5:6], model.logits(files[5]))
    assert np.array_equal(together[::-1], model.logits(files[::-1]))


def test_probabilities_are_those_of_the_module(stored: Path, images: Path) -> None:
    model, files = load_model(stored), sorted((images / "cat").iterdir())

    logits = model.module(model.module.prepare(model.pixels(files)))

    assert isinstance(model.module, torch.nn.Module)
    # Features are of bfloat16 where the processor has it, as in training.
    np.testing.assert_allclose(model.predict_proba(files), torch.softmax(logits, dim=1).numpy(), atol=5e-3)
    np.testing.assert_allclose(model.predict_proba(files).sum(axis=1), 1.0)


def test_no_images_give_no_rows(stored: Path) -> None:
    model = load_model(stored)

    shapes = [found.shape for found in (model.logits([]), model.predict_proba([]), model.pixels([]))]

    assert shapes == [(0, 3), (0, 3), (0, 32, 32, 3)]
    assert model.features([]).shape == (0, model.card.input_shape[0])
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("image", "fragment"),
    [
        (np.ones((9, 9, 3)), "an array of float64: give uint8"),
        (np.ones((5, 9, 9), np.uint8), "is not an image"),
        (np.ones((9, 9, 3), np.uint16), "an array of uint16"),
        ([None], "NoneType is not a path"),
        ([np.ones((1, 9), np.uint8)], "at least 2"),
        ("/no/such/image.png", "/no/such/image.png: no such file"),
        ([Image.new("F", (9, 9))], r"image number 0: .*32 bits per channel \(floating point\)"),
    ],
)
def test_images_that_cannot_be_used_are_named(stored: Path, image: Any, fragment: str) -> None:
    with pytest.raises(DataError, match=fragment):
        load_model(stored).predict(image)


def test_models_of_before_are_read_without_a_digest() -> None:
    model = load_model(ROOT / "tests" / "frozen" / "open-run")

    assert model.card.model_sha256 == ""
    assert model.predict([np.full((8, 8, 3), 10, np.uint8)])[0] in ("bright", "dark")
