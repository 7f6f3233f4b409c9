"""Fixtures of the tests of image sources."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from common.config.sections import DataConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from tests.support.data.sources import Open


@pytest.fixture(scope="module")
def open_named(make_config: Callable[..., RunConfig]) -> Open:
    """Open a source by name and path, and read it."""

    def opened(source: str | Path, path: str | Path = "", classes: str = "") -> ImageSource:
        settings = {"data.source": str(source), "data.path": str(path), "data.classes": classes}
        config: DataConfig = make_config(settings).data
        source = open_source(config)
        entries = source.entries
        assert len(entries.images) == len(entries.labels) >= entries.num_train
        assert entries.images.column_names == ["image"]
        return source

    return opened
