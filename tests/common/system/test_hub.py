"""A hub that cannot be reached is known within seconds, and what was downloaded before is found all the same."""

import os
import socket
import threading
from collections.abc import Callable, Iterator

import huggingface_hub.constants
import pytest

from common.system import hub
from common.system.hub import hub_url, is_reachable, quick_failure


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed(monkeypatch: pytest.MonkeyPatch, _: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def silent(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """A name that nobody answers for: the resolver has no time limit."""
    never = threading.Event()
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)

    def unanswered(*_: object) -> None:
        never.wait(60)
        raise OSError("nobody has answered")

    monkeypatch.setattr(socket, "create_connection", unanswered)
    return url


def nonsense(monkeypatch: pytest.MonkeyPatch, _: str) -> str:
    return "http://127.0.0.1:99999999"


def dead_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    monkeypatch.setenv("http_proxy", closed(monkeypatch, url))
    return url


@pytest.mark.parametrize("arrange", [closed, silent, nonsense, dead_proxy])
def test_quick_failure_switches_the_hub_off_only_inside_the_block(
    listening: str, arrange: Callable[[pytest.MonkeyPatch, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, before = arrange(monkeypatch, listening), huggingface_hub.constants.HF_HUB_OFFLINE

    inside: list[object] = []

    def download() -> None:
        with quick_failure(url):
            inside.extend((os.environ["HF_HUB_OFFLINE"], huggingface_hub.constants.HF_HUB_OFFLINE))
            inside.append(socket.getdefaulttimeout())
            raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        download()

    assert inside[:2] == ["1", True]
    assert isinstance(inside[2], float)
    assert inside[2] <= 1
    assert "HF_HUB_OFFLINE" not in os.environ
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()) == (before, None)


def by_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    monkeypatch.setenv("https_proxy", url)
    return "https://nowhere.invalid"


def direct(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    return url


@pytest.mark.parametrize("arrange", [direct, by_proxy])
def test_quick_failure_changes_nothing_where_the_hub_answers(
    listening: str, arrange: Callable[[pytest.MonkeyPatch, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = arrange(monkeypatch, listening)

    with quick_failure(url):
        assert "HF_HUB_OFFLINE" not in os.environ
        assert socket.getdefaulttimeout() is None
    assert is_reachable(url)


def test_hub_url_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    assert hub_url() == "https://mirror.example.org"
    monkeypatch.delenv("HF_ENDPOINT")
    assert hub_url() == "https://huggingface.co"
