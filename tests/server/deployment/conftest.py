"""Fixtures of the tests of a server's folder."""

from pathlib import Path

import pytest

from server.deployment.server_folder import ServerHome
from server.deployment.setup import make_home
from tests.support.network.federation import free_port


@pytest.fixture(name="home")
def home_fixture(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server", names=["fl.example.org"], port=free_port(), days=825)
