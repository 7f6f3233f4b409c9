"""`bract client start` refuses what is not ready, runs once a folder, and takes all it started with it.

Drives `client.client_config`, `client.runtime.client_lock`, `client.runtime.process_lifetime`,
`client.runtime.supernode`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from client.client_config import SITE_FILE, Site, load_site
from client.runtime.start import start_client
from client.runtime.supernode import command_for
from client.setup.init_client import init_client
from client.status.pin_history import read_pins
from client.status.watched_client import WatchedClient
from common.errors import ConfigError
from common.page.render import render
from common.system.progress import no_progress
from tests.support.clients.own_clients import POLICY, write_images
from tests.support.network.tls_superlink import START, free_address, write_certificates

PIN = "ab" * 32


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A client that is ready to start, for a server that is not there."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "ward 7"
    folder.mkdir()
    (folder / "policy.toml").write_text(f'{POLICY}bundle = "{PIN}"\n')
    made, _ = init_client(
        folder,
        str(write_images(tmp_path / "images", range(10))),
        path="",
        name="ward-7",
        progress=no_progress,
        server=free_address(),
        authority=write_certificates(tmp_path),
    )
    return made


def change(site: Site, before: str, after: str, file: str = SITE_FILE) -> None:
    place = site.folder / file
    text = place.read_text()
    assert before in text
    place.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda site: change(site, site.superlink, ""), "names no server"),
        (lambda site: change(site, site.superlink, "https://there"), "cannot be used"),
        (lambda site: change(site, site.authority, ""), "names no certificate"),
        (lambda site: site.authority_file.unlink(), "cannot be read"),
        (lambda site: site.key_file.unlink(), "cannot be read"),
        (lambda site: site.key_file.chmod(0o640), "can be read by others: chmod 600"),
        (lambda site: change(site, PIN, "", "policy.toml"), "allows dp-sgd but pins no code"),
    ],
)
def test_a_client_that_is_not_ready_is_not_started(site: Site, spoil: Callable[[Site], object], said: str) -> None:
    spoil(site)

    with pytest.raises(ConfigError, match=said):
        start_client(site.folder, Console(quiet=True))

    assert not (site.folder / "flwr").exists()


def test_the_supernode_is_never_without_tls_or_key(site: Site, tmp_path: Path) -> None:
    command = command_for(site, port=9094, secret_file=tmp_path / "secret")

    assert "--insecure" not in command
    assert command[command.index("--root-certificates") + 1] == str(site.authority_file)
    assert command[command.index("--auth-supernode-private-key") + 1] == str(site.key_file)
    assert command[command.index("--node-config") + 1] == f'bract-client="{site.folder}"'
    assert command[command.index("--isolation") + 1] == "process"
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_every_option_is_one_that_flowers_supernode_has(site: Site, tmp_path: Path) -> None:
    command = command_for(site, port=9094, secret_file=tmp_path / "secret")

    told = subprocess.run([*command[:4], "--help"], capture_output=True, text=True, check=True).stdout

    assert [word for word in command if word.startswith("--") and f" {word} " not in told] == []


def test_a_folder_whose_name_cannot_be_said_is_refused(site: Site, tmp_path: Path) -> None:
    odd = site.folder.rename(tmp_path / 'ward" other="1')

    with pytest.raises(ConfigError, match="quotes"):
        command_for(load_site(odd), port=9094, secret_file=tmp_path / "secret")


@contextmanager
def started(site: Site) -> Iterator["subprocess.Popen[str]"]:
    """A client that tries to reach its server; its SuperNode runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(site.folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        until(lambda: "No answer at" in process.stdout.readline())  # type: ignore[union-attr]
        yield process
    finally:
        process.kill()
        process.communicate()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_supernode_ends_with_the_client(site: Site, number: int, code: int) -> None:
    with started(site) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        assert (site.folder / "flwr" / "superexec.secret").stat().st_mode & 0o777 == 0o600

        watched = WatchedClient(site.folder)
        until(lambda: "Nobody answers at" in render(watched.page()))
        process.send_signal(number)
        process.communicate(timeout=30)

    killed = "it did not end in order" in render(watched.page())
    assert killed == (number == signal.SIGKILL)
    assert [pin.bundle for pin in read_pins(site.folder)] == [PIN]
    assert process.returncode == code
    until(lambda: all(map(ended, family)))
    assert (site.folder / "flwr" / "superexec.secret").exists() == (number == signal.SIGKILL)


@pytest.mark.slow
def test_a_client_is_not_started_twice(site: Site) -> None:
    with started(site), pytest.raises(ConfigError, match="is running already"):
        start_client(site.folder, Console(quiet=True))


@pytest.mark.slow
def test_an_unpinned_client_without_dp_says_whom_it_trusts(site: Site) -> None:
    change(site, f'bundle = "{PIN}"', 'bundle = ""\nmechanisms = ["none"]', "policy.toml")

    with started(site):
        told = (site.folder / "client.log").read_text()

    assert "runs any code that the server sends" in told


@pytest.mark.slow
def test_where_the_kernel_cannot_a_supernode_watches_for_its_parent() -> None:
    code = (
        "import os, subprocess, sys\nos.environ['BRACT_PARENT'] = str(os.getpid())\n"
        "command = [sys.executable, '-P', '-m', 'client.runtime.supernode_main']\n"
        "options = ['--insecure', '--superlink', '127.0.0.1:9', '--port', sys.argv[1], '--isolation', 'process']\n"
        "null = subprocess.DEVNULL\n"
        "node = subprocess.Popen(command + options, stdout=null, stderr=null)\n"
        "print(node.pid, flush=True)\nsys.stdin.read()\n"
    )
    port = free_address().rpartition(":")[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
    )
    assert parent.stdout is not None
    node = psutil.Process(int(parent.stdout.readline()))
    until(lambda: any(connection.status == "LISTEN" for connection in node.net_connections()))

    parent.kill()
    parent.wait()  # a process that nobody has asked after still counts as there

    until(lambda: ended(node))
    parent.stdin.close()  # type: ignore[union-attr]
    parent.stdout.close()
