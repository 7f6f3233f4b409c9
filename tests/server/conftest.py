"""Fixtures of the server's tests."""

from pathlib import Path

import pytest

from tests.support.server.failing_federation import clients_of


@pytest.fixture(name="folders")
def folders_fixture(tmp_path: Path, own_home: Path) -> list[Path]:
    return clients_of(tmp_path)


@pytest.fixture(name="output")
def output_fixture(tmp_path: Path) -> Path:
    return tmp_path / "run"
