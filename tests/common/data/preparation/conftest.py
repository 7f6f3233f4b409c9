"""A small folder to prepare, and processes that stand for the one of the backbone pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from common.config.schema import RunConfig
from common.data import preprocessing, scan
from tests.support.data.feature_processes import COUNT, TINY, Eager, Fake

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, own_home: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        file = tmp_path / "shapes" / f"{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 40, 3)).astype(np.uint8)).save(file)
    return tmp_path / "shapes"


@pytest.fixture(name="config")
def config_fixture(folder: Path, make_config: MakeConfig) -> RunConfig:
    return make_config({"data.source": str(folder), "num-clients": 2} | TINY)


@pytest.fixture(name="decoded")
def decoded_fixture(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the scan has decoded an image, and how often the pass has."""
    counts = {"scan": 0, "pass": 0}

    def counting(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(cell: Any) -> Any:
            counts[name] += 1
            return read(cell)

        return counted

    monkeypatch.setattr(scan, "read_image", counting("scan", scan.read_image))
    monkeypatch.setattr(preprocessing, "read_image", counting("pass", preprocessing.read_image))
    return counts


@contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch, kind: type[Fake]) -> Iterator[type[Any]]:
    class Own(kind):  # type: ignore[misc, valid-type]
        started: ClassVar[list[Fake]] = []

    monkeypatch.setattr(preprocessing, "FeatureProcess", Own)
    monkeypatch.setattr(preprocessing, "_has_torch", lambda: False)
    yield Own
    assert all(process.killed for process in Own.started), "no process must be left behind"


@pytest.fixture(name="fake")
def fake_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Fake]]:
    with standing_in(monkeypatch, Fake) as kind:
        yield kind


@pytest.fixture(name="eager")
def eager_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Eager]]:
    with standing_in(monkeypatch, Eager) as kind:
        yield kind
