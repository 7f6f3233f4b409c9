"""Fixtures of the tests of commands that use a model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from tests.support.inference.stored_models import settings_of, shaded_images, store_model


@pytest.fixture(name="pets", scope="session")
def pets_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six images of three classes."""
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=2)


@pytest.fixture(name="pet_run", scope="session")
def pet_run_fixture(
    pets: Path, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run with a small network on such images."""
    folder = tmp_path_factory.mktemp("run")
    store_model(folder, make_config(settings_of(pets, "cnn")))
    (folder / "config.toml").touch()
    return folder
