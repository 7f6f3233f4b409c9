"""Real processes: Ray, signals, a large population, accuracy over seeds.

Drives `simulations.engines.ray`.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bract import app
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from simulations.simulate import run_job
from tests.support.data.divided_table import BY_SEX, write_divided
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
BRACT = [str(Path(sys.executable).parent / "bract"), "simulate"]


def model_bytes(folder: Path) -> list[bytes]:
    return [(folder / "model" / name).read_bytes() for name in ("model.safetensors", "card.json")]


def wait_for_rounds(process: "subprocess.Popen[str]", folder: Path, wanted: int) -> None:
    file = folder / "rounds.jsonl"
    while not file.is_file() or len(file.read_text().splitlines()) < wanted:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("backbone", "bits", "aggregation"),
    [
        ("cnn", 8, "plain"),
        ("efficientnet_lite0", 32, "secure"),
        pytest.param("efficientnet_lite0", 0, "plain", marks=pytest.mark.soak),
    ],
)
def test_ray_and_in_process_give_the_same_model_to_the_bit(
    tmp_path: Path, digits: Prepared, backbone: str, bits: int, aggregation: str
) -> None:
    settings = ["--set", "privacy.mechanism=none", "--set", "num-rounds=3", "--set", "training.local-epochs=1"]
    settings += ["--set", f"model.backbone={backbone}"]
    # No bits of an update stand for a head from sums.
    settings += ["--set", f"training.update-bits={bits}" if bits else "training.method=statistics"]
    if backbone == "cnn":
        settings += [str(write_divided(tmp_path / "scans", 120)), "--set", "num-clients=3"]
        settings += [part for key, value in BY_SEX.items() for part in ("--set", f"{key}={value}")]
    settings += ["--set", f"privacy.aggregation={aggregation}"]
    command = [*BRACT, "--engine", "ray", "--out", str(tmp_path / "ray"), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as under_ray:
        done = CliRunner().invoke(
            app, ["simulate", "--engine", "in-process", "--out", str(tmp_path / "in-process"), *settings]
        )
        output, _ = under_ray.communicate(timeout=240)

    assert (done.exit_code, under_ray.returncode) == (0, 0), done.output + output
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "in-process")
    ray, in_process = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("ray", "in-process"))
    assert ray["engine"] == "ray"
    assert ray.get("subgroup_metrics") == in_process.get("subgroup_metrics")
    assert ("subgroup_metrics" in ray) == (backbone == "cnn")


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[str]:
    """Address of a Ray cluster of two nodes of one core, each with a home folder of its own."""
    psutil = pytest.importorskip("psutil")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = ["--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--disable-usage-stats", "--block"]
    started = []
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        head = ["--head", "--port", address.partition(":")[2], "--include-dashboard=false", "--temp-dir", scratch]
        try:
            for name, own in (("head", head), ("worker", ["--address", address])):
                home = {"BRACT_HOME": str(tmp_path / name), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
                command = [str(Path(sys.executable).parent / "ray"), "start", *own, *common]
                with (tmp_path / f"{name}.log").open("w") as log:
                    started.append(subprocess.Popen(command, env=os.environ | home, stdout=log, stderr=log))
                wait_for_text(started[-1], tmp_path / f"{name}.log", "Ray runtime started")
            yield address
        finally:
            family = [child for node in started for child in psutil.Process(node.pid).children(recursive=True)]
            for process in (*started, *family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            for node in started:
                node.wait()


def wait_for_text(process: "subprocess.Popen[bytes]", file: Path, text: str) -> None:
    deadline = time.monotonic() + 90
    while text not in file.read_text():
        assert process.poll() is None, file.read_text()
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.1)


def test_a_ray_cluster_whose_nodes_share_no_home_gives_the_same_model(tmp_path: Path, two_nodes: str) -> None:
    settings = [str(write_divided(tmp_path / "scans", 60)), "--set", "privacy.mechanism=none", "--set", "num-rounds=2"]
    settings += ["--set", "num-clients=4", "--set", "model.backbone=cnn", "--set", "training.local-epochs=1"]
    for engine in ("in-process", "ray"):
        command = [*BRACT, "--engine", engine, "--out", str(tmp_path / engine), *settings]
        home = {"BRACT_HOME": str(tmp_path / "server"), "RAY_ADDRESS": two_nodes}
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr

    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "in-process")
    # Both nodes have computed: each made caches of its own.
    assert all(list((tmp_path / node / "cache" / "inputs").iterdir()) for node in ("head", "worker", "server"))


@pytest.mark.parametrize("engine", ["in-process", "ray"])
def test_ctrl_c_keeps_complete_rounds_and_says_so(tmp_path: Path, digits: Prepared, engine: str) -> None:
    command = [*BRACT, "--engine", engine, "--out", str(tmp_path / "run"), "--set", "num-rounds=400"]
    command += ["--set", "privacy.noise-multiplier=8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_rounds(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert (summary["status"], summary["private"]) == ("interrupted", True)
    # The whole plan is charged, and costs the same under each engine.
    assert summary["epsilon_max"] == pytest.approx(13.2067, abs=1e-3)
    assert 2 <= summary["rounds"] < 400


def test_kill_leaves_a_true_summary_and_whole_files(tmp_path: Path, digits: Prepared) -> None:
    command = [*BRACT, "--out", str(tmp_path / "run"), "--set", "num-rounds=400", "--set", "privacy.mechanism=none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_rounds(process, tmp_path / "run", 3)
    process.kill()
    process.communicate()

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert summary["status"] == "interrupted"
    assert summary["rounds"] >= len(lines) - 1
    assert all(json.loads(line) for line in lines)


# A process counts the memory of whoever started it until it runs its own program: so a small one starts the run.
_MEASURE = (
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    "sys.exit(done.returncode)\n"
)


def test_a_thousand_clients_stay_below_two_gigabytes(tmp_path: Path, digits: Prepared) -> None:
    command = [sys.executable, "-c", _MEASURE]
    command += [*BRACT, "--json", "--out", str(tmp_path / "run"), "--set", "num-clients=1000"]
    command += ["--set", "client-fraction=0.1", "--set", "num-rounds=6", "--set", "data.partitioner=iid"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    summary = json.loads(done.stdout)
    assert (summary["status"], summary["clients"], summary["cohort"]) == ("complete", 1000, 100)
    assert 100 * 1024 < int(done.stderr.split()[-1]) < 2 * 1024 * 1024


@pytest.mark.parametrize(("mechanism", "least"), [("dp-sgd", 0.80), ("none", 0.94)])
def test_digits_reach_the_promised_accuracy(
    tmp_path: Path, make_config: MakeConfig, digits: Prepared, mechanism: str, least: float
) -> None:
    accuracies = []
    for seed in range(5):
        settings = {"privacy.mechanism": mechanism, "seed": seed, "output-dir": str(tmp_path / str(seed))}
        summary, _ = run_job(make_config(settings), engine="in-process", baselines=False, console=Console(quiet=True))
        accuracies.append(summary["accuracy"])
        assert mechanism == "none" or summary["epsilon_max"] <= 8.0

    assert statistics.median(accuracies) >= least, accuracies


def test_flwr_run_by_hand_works_as_readme_says(tmp_path: Path, digits: Prepared) -> None:
    psutil = pytest.importorskip("psutil")
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["flwr", "run", str(ROOT), "local", "--stream"]
    command += ["--federation-config", "num-supernodes=5 client-resources-num-cpus=1"]
    command += ["--run-config", f'output-dir="{tmp_path / "run"}" privacy.mechanism="none" num-rounds=2']
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert (tmp_path / "run" / "summary.json").is_file(), done.stdout + done.stderr
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(tmp_path / "flwr") in " ".join(process.info["cmdline"] or []):
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()

    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "complete"
