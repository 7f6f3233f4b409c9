"""A folder with four images and a table, as a run reads it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source

IMAGES = ("s/0.png", "s/1.png", "s/2.png", "s/3.png")
OpenTable = Callable[..., ImageSource]


@pytest.fixture
def open_table(make_config: Callable[..., RunConfig], tmp_path: Path) -> OpenTable:
    """Write images and a table and open it. Only names are looked at, so the images may be empty."""

    def opened(
        content: str | bytes = b"", name: str = "t.csv", *, images: Sequence[str] = IMAGES, **data: str
    ) -> ImageSource:
        for image in images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).touch()
        if content:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        source = str(tmp_path / name)
        return open_source(make_config({"data.source": source, **{f"data.{key}": data[key] for key in data}}).data)

    return opened


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[[ImageSource], list[tuple[str, str]]]:
    """List the file and the class of each row; "" for none."""

    def rows(source: ImageSource) -> list[tuple[str, str]]:
        entries = source.entries
        files = [cell["path"] or "" for cell in entries.images[:]["image"]]
        shown = [str(Path(file).relative_to(tmp_path)) if file.startswith(str(tmp_path)) else file for file in files]
        classes = [*entries.classes, ""]
        return list(zip(shown, (classes[label] for label in entries.labels), strict=True))

    return rows
