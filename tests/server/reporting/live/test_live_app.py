"""Live page: new rounds soon, for whoever has the token, on this machine alone.

Drives `common.live_page.live_app`, `common.live_page.serve`, `common.live_page.viewers`, `common.page.live_script`,
`server.reporting.live.watched_folder`, `server.commands.watch`.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tomli_w

from common.config.loading import defaults, nest, override
from common.errors import ConfigError
from common.live_page.viewers import Viewers
from server.deployment.client_list import Client
from server.reporting.live.watched_folder import WatchedFolder

HOSTILE = "<script>alert(1)</script>\u202e"


def write_round(run: Path, number: int) -> None:
    line = {
        "round": number,
        "clients": 2,
        "failures": {HOSTILE: "lost"},
        "seconds": 0.1,
        "bytes_up": 1,
        "bytes_down": 1,
    }
    with (run / "rounds.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


@pytest.fixture(name="run")
def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(tomli_w.dumps(nest(override(defaults(), {"num-rounds": 9}))))
    write_round(run, 1)
    return run


@pytest.fixture(name="address")
def served(run: Path) -> Iterator[str]:
    """Address of the page that the real command serves."""
    command = [sys.executable, "-m", "bract", "watch", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, process.stderr.read()
        yield found.group()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "The page is closed. The run goes on." in process.stderr.read()


def test_watch_shows_a_new_round_soon_and_lets_nobody_else_in(address: str, run: Path) -> None:
    token, port = address.split("/")[3], int(address.split(":")[2].split("/", maxsplit=1)[0])
    assert len(token) >= 40
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        page = client.get(f"/{token}/")
        assert page.status_code == 200
        assert "connect-src 'self'" in page.text
        assert HOSTILE not in page.text
        assert page.headers["referrer-policy"] == "no-referrer"
        for path in (
            "/",
            "/wrong/",
            f"/{token[:-1]}x/",
            "/wrong/events",
            f"/{token}/../../etc/passwd",
            f"/{token}/config.toml",
        ):
            assert client.get(path).status_code == 404, path
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", ""):
            assert client.get(f"/{token}/", headers={"Host": host}).status_code == 403, host
        assert client.post(f"/{token}/").status_code == 405

        with client.stream("GET", f"/{token}/events") as events:
            lines = (line for line in events.iter_lines() if line.startswith("data"))
            assert next(lines) == "data: 1"
            started = time.monotonic()
            write_round(run, 2)
            assert next(lines) == "data: 2"
            assert time.monotonic() - started < 10  # 2 s on a machine that does nothing else
        assert 'data-version="2"' in client.get(f"/{token}/").text


def test_a_viewer_that_does_not_read_delays_no_other(address: str, run: Path) -> None:
    token, port = address.split("/")[3], int(address.split(":")[2].split("/", maxsplit=1)[0])
    sleepers = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for sleeper in sleepers:
        sleeper.sendall(f"GET /{token}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    said = []

    def read() -> None:
        with httpx.stream("GET", f"http://127.0.0.1:{port}/{token}/events", timeout=20) as events:
            for line in events.iter_lines():
                said.append(line)
                if line == "data: 2":
                    return

    readers = [threading.Thread(target=read) for _ in range(10)]
    for reader in readers:
        reader.start()
    while said.count("data: 1") < 10:
        time.sleep(0.05)
    write_round(run, 2)
    for reader in readers:
        reader.join(20)

    assert said.count("data: 2") == 10
    for sleeper in sleepers:
        sleeper.close()


def test_a_page_is_rendered_once_for_each_change(run: Path) -> None:
    async def look() -> list[int]:
        viewers, versions = Viewers(WatchedFolder(run)), []
        for change in (None, None, 2, None):
            if change:
                write_round(run, change)
            viewers._next_rendering = 0
            await viewers.refresh()
            versions.append(viewers.version)
        return versions

    assert asyncio.run(look()) == [1, 1, 2, 2]


def test_a_page_that_takes_long_leaves_the_run_most_of_a_core(run: Path) -> None:
    class SlowFolder(WatchedFolder):
        """Folder of a run with very many clients."""

        def page(self):  # type: ignore[no-untyped-def]
            time.sleep(0.2)
            return super().page()

    async def look() -> float:
        viewers = Viewers(SlowFolder(run))
        await viewers.refresh()
        write_round(run, 2)
        await viewers.refresh()
        assert viewers.version == 1, "the second rendering waits"
        return viewers._next_rendering - time.monotonic()

    assert asyncio.run(look()) > 0.5


def test_a_folder_that_is_away_for_a_while_ends_no_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.live_page.viewers._SECONDS_BETWEEN_LOOKS", 0.01)

    async def look() -> int:
        viewers = Viewers(WatchedFolder(run))
        viewers._viewers = 1
        looking = asyncio.create_task(viewers.keep_fresh())
        while not viewers.version:
            await asyncio.sleep(0.01)
        away = run.rename(run.with_name("away"))
        await asyncio.sleep(0.2)
        away.rename(run)
        write_round(run, 2)
        async with asyncio.timeout(20):
            while viewers.version < 2:
                viewers._next_rendering = 0
                await asyncio.sleep(0.01)
        assert not looking.done()
        looking.cancel()
        return viewers.version

    assert asyncio.run(look()) >= 2


def test_a_folder_without_run_or_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither a run"):
        WatchedFolder(tmp_path)


def test_a_federation_shows_its_clients_and_its_newest_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "federation"
    home.mkdir()
    (home / "server.toml").write_text('host = "127.0.0.1"\nport = 1\nnames = ["localhost"]\ndays = 1\n')
    clients = [Client(HOSTILE, "key", 1, "online", "2026-11-27T10:00:00+00:00", "2026-11-26T10:00:00+00:00")]
    monkeypatch.setattr("server.reporting.live.watched_folder.list_clients", lambda _: (clients, True))
    watched = WatchedFolder(home)

    assert [section.title for section in watched.page().sections] == ["Clients of this server"]
    for name in ("old", "new"):
        shutil.copytree(run, home / "runs" / name)
    os.utime(home / "runs" / "old" / "config.toml", (1, 1))
    before = watched.mark()
    page = watched.page()

    assert page.title == "Run new"
    assert [section.name for section in page.sections][:2] == ["server-clients", "verdict"]
    clients[0] = Client(HOSTILE, "key", 1, "offline", "2026-11-27T11:00:00+00:00", "")
    assert watched.mark() != before, "a client that went away changes the page"
