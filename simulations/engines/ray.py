"""The engine that runs the apps under Ray by `flwr run`."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.data.partitioning.assignment import load_or_make_partition
from common.data.preprocessing import prepare
from common.errors import ConfigError, FederationError
from common.system.app_bundle import stage_app
from common.system.extras import install_hint, is_installed
from server.reporting.follow_run import follow_run, run_status
from server.reporting.terminal_progress import TerminalProgress
from server.state.run_directory import RunDirectory

_STARTUP_SECONDS = 60.0
_ENDING_SECONDS = 15.0


def run_under_ray(config: RunConfig, progress: TerminalProgress) -> None:
    """Run a simulation by `flwr run`, with the progress of the in-process engine.

    Args:
        config: The run, with an absolute `output_dir`.
        progress: Shows each round when its record is written.

    Raises:
        ConfigError: Ray is not installed.
        FederationError: The run ended without a result. The message has the end of its log.
    """
    if not is_installed("ray"):
        raise ConfigError(f"--engine ray needs Ray: {install_hint('ray')}, or use --engine in-process")
    # Prepare in this process: mistakes then show before Ray starts, and all workers map one copy.
    prepared = prepare(config, progress.work)
    load_or_make_partition(config, prepared)
    folder = Path(config.output_dir)
    with tempfile.TemporaryDirectory(prefix="bract-ray-") as scratch:
        home = Path(scratch)
        interrupted = False
        try:
            with _superlink(home) as address:
                _flwr_run(config, home, address, progress)
        except KeyboardInterrupt:
            interrupted = True
        if run_status(folder) != "complete" and not (interrupted and (folder / "summary.json").is_file()):
            raise FederationError(f"the run under Ray left no result; the end of its log:\n{_tail(home)}")
    summary = json.loads((folder / "summary.json").read_text())
    summary["seconds"]["features"] = round(prepared.seconds, 3)
    summary["seconds"]["total"] = round(summary["seconds"]["total"] + prepared.seconds, 3)
    RunDirectory(folder).write_json("summary.json", summary)


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # A simulation runs on one machine. Ray then listens on loopback only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@contextmanager
def _superlink(home: Path) -> Iterator[str]:
    """Start a SuperLink on a free loopback port.

    On leaving, it ends with all its children.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", port]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command, env=_environment(home), stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(int(port), process, home)
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", home: Path) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise FederationError(f"Flower's SuperLink did not start; the end of its log:\n{_tail(home)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt the SuperLink and kill the processes that it leaves."""
    import psutil

    # List the children now: once their parent has ended, they cannot be found any more.
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(family, timeout=1.0)[1]:
        # It may have ended since it was looked at.
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=5.0)


def _flwr_run(config: RunConfig, home: Path, address: str, progress: TerminalProgress) -> None:
    app = stage_app(home)
    (home / "flwr").mkdir(exist_ok=True)
    connection = {"superlink": {"default": "bract", "bract": {"address": address, "insecure": True}}}
    (home / "flwr" / "config.toml").write_text(tomli_w.dumps(connection))
    (home / "run.toml").write_text(tomli_w.dumps(resolved(config)))
    federation = f"num-supernodes={config.num_clients} client-resources-num-cpus=1"
    command = ["flwr", "run", str(app), "bract", "--stream", "--run-config", str(home / "run.toml")]
    command += ["--federation-config", federation]
    with (home / "run.log").open("wb") as log:
        process = subprocess.Popen(command, env=_environment(home), stdout=log, stderr=log)  # noqa: S603
        try:
            follow_run(
                Path(config.output_dir),
                progress,
                num_rounds=config.num_rounds,
                num_clients=config.num_clients,
                ended=lambda: process.poll() is not None,
            )
            process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.terminate()
            process.wait()


def _tail(home: Path) -> str:
    lines: list[str] = []
    for name in ("run.log", "superlink.log"):
        if (home / name).is_file():
            lines += (home / name).read_text(errors="replace").splitlines()[-15:]
    return "\n".join(lines)
