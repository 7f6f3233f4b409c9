"""A real SuperLink and real SuperNodes on loopback, ended with everything they started."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.system.app_bundle import stage_app

STARTUP_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **more: str) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


@contextmanager
def process(command: Sequence[str], log: Path, env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process group of its own, ended for certain on leaving."""
    with log.open("wb") as stream:
        started = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield started
        finally:
            _end(started)


def _end(started: "subprocess.Popen[bytes]") -> None:
    import psutil

    try:
        family = psutil.Process(started.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    started.send_signal(signal.SIGINT)
    try:
        started.wait(5.0)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
    for child in family:
        if child.is_running():
            child.kill()
    psutil.wait_procs(family, timeout=5.0)


@contextmanager
def federation(home: Path, node_configs: Sequence[str], *, homes: Sequence[Path] = (), **more: str) -> Iterator[str]:
    """A SuperLink and one SuperNode for each node configuration; gives the SuperLink's address.

    `homes` are the homes of the nodes' holders, where each has its own.
    """
    address = f"127.0.0.1:{free_port()}"
    env = environment(home, **more)
    (home / "flwr").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
        stack.enter_context(process(link, home / "superlink.log", env))
        wait_for(address)
        for number, config in enumerate(node_configs):
            node = ["flower-supernode", "--insecure", "--superlink", address, "--host", "127.0.0.1"]
            node += ["--port", str(free_port()), "--node-config", config]
            own = {"BRACT_HOME": str(homes[number])} if homes else {}
            stack.enter_context(process(node, home / f"supernode-{number}.log", env | own))
        yield address


def wait_for(address: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    host, _, port = address.rpartition(":")
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at {address}")


def flwr_run(
    home: Path,
    address: str,
    config: RunConfig,
    *,
    seconds: float,
    app: Path | None = None,
    authority: Path | None = None,
    **more: str,
) -> str:
    """Submit the app, or a changed one, as `flwr run` does and follow it to its end; gives what was streamed."""
    app = app or stage_app(home)
    trusted: dict[str, object] = {"root-certificates": str(authority)} if authority else {"insecure": True}
    connection = {"superlink": {"default": "bract", "bract": {"address": address, **trusted}}}
    (home / "flwr" / "config.toml").write_text(tomli_w.dumps(connection))
    (home / "run.toml").write_text(tomli_w.dumps(resolved(config)))
    command = ["flwr", "run", str(app), "bract", "--stream", "--run-config", str(home / "run.toml")]
    done = subprocess.run(
        command, env=environment(home, **more), capture_output=True, text=True, check=False, timeout=seconds
    )
    return done.stdout + done.stderr
