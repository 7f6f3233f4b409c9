"""Fixtures of the tests that use stored models."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from tests.support.inference.stored_models import settings_of, shaded_images, store_model


@pytest.fixture(name="stored", scope="session")
def stored_fixture(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with a small frozen backbone."""
    folder = tmp_path_factory.mktemp("stored")
    store_model(folder, make_config(settings_of(shaded_images(folder / "images" / "pets"))))
    return folder / "model"
