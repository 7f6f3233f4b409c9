"""`Classifier.explain` explains images of every kind by the network that scores them.

Drives `common.inference.explanation.overlay`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config.schema import RunConfig
from common.errors import BractError
from common.inference.classifier import load_model
from common.inference.explanation.overlay import draw_overlay
from tests.support.inference.stored_models import CLASSES, settings_of, shaded_images, store_model

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets")


@pytest.fixture(name="model", scope="module")
def model_fixture(images: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    store_model(folder, make_config(settings_of(images, "cnn")))
    return load_model(folder, device="cpu")


def test_paths_pictures_and_arrays_give_the_same_map_alone_and_among_others(model: Any, images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    with Image.open(files[0]) as opened:
        opened.load()
        same = model.explain([str(files[0]), opened, np.asarray(opened), *files])

    alone = model.explain(files[0])[0]
    assert len(same) == 3 + len(files)
    for found in same[:4]:
        assert np.allclose(found.heat, alone.heat, rtol=1e-3, atol=1e-6)
    assert not np.allclose(same[-1].heat, alone.heat, rtol=1e-3, atol=1e-6)


def test_the_class_and_its_probability_are_those_of_the_model(model: Any, images: Path) -> None:
    files = sorted(images.rglob("*.png"))

    likely, other = model.explain(files), model.explain(files, class_name="owl", method="occlusion")

    shares = model.predict_proba(files)
    assert [found.class_name for found in likely] == model.predict(files)
    assert np.allclose([found.probability for found in likely], shares.max(axis=1), atol=1e-4)
    assert np.allclose([found.probability for found in other], shares[:, CLASSES.index("owl")], atol=1e-4)
    assert [found.predicted for found in other] == model.predict(files)
    assert {found.method for found in likely} == {"grad-cam"}
    assert {found.method for found in other} == {"occlusion"}


@pytest.mark.parametrize("settings", [{}, {"data__gray_window": "0,4000"}])
def test_the_picture_is_the_square_that_the_network_saw(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Left and right of a wide image are cut off, and 16 bits are shown through the same window."""
    images = shaded_images(tmp_path / "pets")
    store_model(tmp_path, make_config(settings_of(images, "cnn", **settings)))
    wide = np.zeros((40, 80), np.uint16)
    wide[:, 20:60], wide[:, :20] = 2000, 65535
    model = load_model(tmp_path, device="cpu")

    picture = np.asarray(model.explain(wide)[0].picture.convert("L"))

    assert picture.shape == (320, 320)
    expected = int(model.pixels(wide)[0, 16, 16, 0])
    assert abs(int(picture[160, 160]) - expected) <= 1
    assert (picture[:, 40:-40] == picture[160, 160]).all()


@pytest.mark.parametrize(
    ("given", "options", "fragment"),
    [
        ("gone.png", {}, "gone.png: no such file"),
        (np.zeros((4, 4), np.float32), {}, "an array of float32"),
        (np.zeros((9, 9), np.uint8), {"class_name": "emu"}, "no class 'emu'; it has cat, dog, owl"),
    ],
)
def test_a_mistake_is_named(model: Any, given: Any, options: dict[str, Any], fragment: str) -> None:
    with pytest.raises(BractError, match=fragment):
        model.explain(given, **options)


def test_the_strongest_colour_is_where_the_map_is_largest() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 7.0
    picture = Image.new("RGB", (80, 80), (120, 120, 120))

    drawn = np.asarray(draw_overlay(picture, heat)).astype(int)

    assert drawn.shape == (80, 162, 3)
    ours, gray = drawn[:, 82:], np.abs(drawn[:, 82:] - 120).sum(axis=2)
    row, column = np.unravel_index(gray.argmax(), gray.shape)
    assert row < 20
    assert column >= 60
    assert (drawn[:, :80] == 120).all()
    assert (ours[50:, :30] == 120).all()


def test_a_map_of_zeros_colours_nothing() -> None:
    drawn = np.asarray(draw_overlay(Image.new("L", (40, 40), 90), np.zeros((2, 2), np.float32)))

    assert (drawn[:, :40] == 90).all()
    assert (drawn[:, 41:] == 90).all()
