"""Fixtures of the tests of ledger audits."""

import shutil
from pathlib import Path

import pytest

from common.ledger.signed_heads import SignedHead
from tests.support.ledger.builders import write_honest


@pytest.fixture(name="honest", scope="module")
def honest_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SignedHead]]:
    file = tmp_path_factory.mktemp("honest") / "a.sqlite"
    return file, write_honest(file)


@pytest.fixture(name="copy")
def copy_fixture(honest: tuple[Path, list[SignedHead]], tmp_path: Path) -> Path:
    return Path(shutil.copy(honest[0], tmp_path / "copy.sqlite"))


@pytest.fixture(name="heads")
def heads_fixture(honest: tuple[Path, list[SignedHead]]) -> list[tuple[str, SignedHead]]:
    return [("a", head) for head in honest[1]]
