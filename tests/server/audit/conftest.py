"""Fixtures of the tests of run audits."""

import shutil
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from tests.support.ledger.audited_runs import SETTINGS, MakeConfig, write_run


@pytest.fixture(name="config", scope="module")
def config_fixture(make_config: MakeConfig) -> RunConfig:
    return make_config(SETTINGS | {"privacy.target-epsilon": 4.0})


@pytest.fixture(name="honest", scope="module")
def honest_fixture(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    return write_run(tmp_path_factory.mktemp("honest") / "run", config)


@pytest.fixture(name="run")
def run_fixture(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))
