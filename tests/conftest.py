"""Shared arrangements: an own cache folder, real digits, and runs made of them."""

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared, prepare
from server.reporting import artifacts

if TYPE_CHECKING:
    from tests.support.clients.secure_clients import Wards

_PIXEL = Path(__file__).with_name("support").joinpath("data", "pixel.png").read_bytes()


@pytest.fixture(scope="session", autouse=True)
def bract_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches of this test session; never the user's own."""
    home = tmp_path_factory.mktemp("bract-home")
    before = os.environ.get("BRACT_HOME")
    os.environ["BRACT_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["BRACT_HOME"]
    else:
        os.environ["BRACT_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def an_interrupt_is_heard() -> None:
    """A shell that starts tests in the background lets them, and all that they start, ignore the signal of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_is_no_garbage() -> None:
    """Some of Flower's strategies collect garbage for every array: slow where torch and hypothesis are loaded."""
    gc.freeze()


@pytest.fixture(autouse=True)
def what_is_logged_is_heard() -> None:
    """Commands that an earlier test ran in this process have set the level for good."""
    logging.getLogger("bract").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def pictures_of_runs_are_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run writes its pictures as one pixel, because drawing takes long. Tests marked `pictures` get them whole."""
    if request.node.get_closest_marker("pictures") is None:
        for name in ("draw_confusion", "draw_curves", "draw_partition"):
            monkeypatch.setattr(artifacts, name, lambda file, *_, **__: file.write_bytes(_PIXEL))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """Build a configuration from settings, with dots and dashes written as in TOML."""

    def make(settings: dict[str, Scalar] | None = None) -> RunConfig:
        return parse(override(defaults(), settings or {}))

    return make


@pytest.fixture(scope="session")
def digits(make_config: Callable[..., RunConfig]) -> Prepared:
    """All 1,797 digits after one real pass through the real backbone."""
    return prepare(make_config())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skip is a failure, also where several processes ran the tests."""
    reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") == "true" and skipped:
        reporter.write_line(f"in CI a skip is a failure: {[report.nodeid for report in skipped]}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(name="own_home")
def own_home_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(name="wards", scope="session")
def wards_fixture(tmp_path_factory: pytest.TempPathFactory, bract_home: Path) -> "Wards":
    """Five clients of secure sums, without a charge: made once, as it takes seconds."""
    from tests.support.clients.secure_clients import Wards, homes_of, secure_clients

    homes = homes_of(tmp_path_factory.mktemp("secure"), 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRACT_HOME", str(bract_home))
        return Wards(secure_clients(homes[0].parent, homes), homes)
