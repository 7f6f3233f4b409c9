"""A home of the test's own and a folder of images, for the tests of clients with images of their own."""

from pathlib import Path

import pytest

from tests.support.clients.own_clients import write_images

COUNT = 40


@pytest.fixture(name="own_home")
def own_home_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", range(COUNT))
