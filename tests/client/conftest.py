"""Fixtures of the client's tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.bundle_review import compare
from client.checks import policy
from client.runtime import start
from client.setup.init_client import init_client
from client.status import status
from common.system import app_bundle as bundle
from common.system.progress import no_progress
from tests.support.clients.healthy_client import COUNT, Bed, _installed
from tests.support.clients.own_clients import write_images
from tests.support.clients.server_stand_ins import Authority, serving


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", range(COUNT))


@pytest.fixture(autouse=True)
def bundle_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying and packing all of Bract takes a third of a second, and a health check does it each time."""
    for module in (bundle, compare, policy, start, status):
        monkeypatch.setattr(module, "installed_bundle", _installed)


@pytest.fixture(name="authority", scope="module")
def authority_fixture() -> Authority:
    return Authority()


@pytest.fixture(name="bed")
def bed_fixture(tmp_path: Path, own_home: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder, images = tmp_path / "ward", write_images(tmp_path / "images", range(COUNT))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate())
    with ExitStack() as stack:
        server = stack.enter_context(serving(authority.server(tmp_path)))
        more = {"server": server.address, "authority": ca}
        init_client(folder, str(images), path="", name="Ward 7", progress=no_progress, **more)  # type: ignore[arg-type]
        yield Bed(tmp_path, folder, images, own_home, authority, server, stack, monkeypatch)
