"""A secret in an exception, on all three runtimes: what arrives at the server is a bare code."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from common.errors import FederationError
from simulations.simulate import run_job
from tests.support.network.federation import federation, flwr_run
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
SECRET = "patient-4711"  # noqa: S105
# Plants a failure in every client's training that names a file, a label and a shape; writes down what the server got.
PLANT = """
import importlib.abc, importlib.util, os, sys

class Planter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in ("client.training.trainer", "server.rounds.replies"):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), plant(name, module))[0]
        return spec

def plant(name, module):
    if name == "client.training.trainer":
        def train(self, *_, **__):
            raise ValueError("cannot read /data/SECRET/melanoma-0007.png: label melanoma, shape (3, 17, 29)")
        module.Trainer.train = train
    else:
        deliver = module.deliver
        def watched(*asked, **how):
            arrived = deliver(*asked, **how)
            with open(os.environ["ARRIVED"], "a") as stream:
                for reply in arrived.values():
                    parts = vars(reply.error) if reply.has_error() else dict(reply.content)
                    stream.write(f"{reply.metadata.message_type} {parts} {vars(reply.metadata)}\\n")
            return arrived
        module.deliver = watched

sys.meta_path.insert(0, Planter())
""".replace("SECRET", SECRET)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which every Python process plants the failure."""
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PLANT)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("ARRIVED", str(tmp_path / "arrived.txt"))
    return tmp_path / "arrived.txt"


def settings(tmp_path: Path) -> dict[str, str | int]:
    run = {"num-clients": 2, "num-rounds": 1, "round-retries": 0, "data.partitioner": "iid"}
    return run | {"output-dir": str(tmp_path / "run")}


def check(arrived: Path, folder: Path) -> None:
    text = arrived.read_text()
    assert text.count("'_reason': 'INTERNAL'") == 2, text
    assert not [word for word in (SECRET, "melanoma", "(3, 17", "ValueError") if word in text]
    kept = [file for file in folder.rglob("*") if file.is_file()]
    assert kept
    assert not [file for file in kept if SECRET.encode() in file.read_bytes()]


def test_a_planted_secret_sends_a_bare_code_under_ray(
    tmp_path: Path, digits: Prepared, make_config: MakeConfig, planted: Path
) -> None:
    with pytest.raises(FederationError):
        run_job(make_config(settings(tmp_path)), engine="ray", baselines=False, console=Console(quiet=True))

    check(planted, tmp_path / "run")


def test_a_planted_secret_sends_a_bare_code_on_the_deployment_runtime(
    tmp_path: Path, digits: Prepared, make_config: MakeConfig, planted: Path
) -> None:
    nodes = [f"partition-id={number} num-partitions=2 bract-simulation=true" for number in range(2)]
    with federation(tmp_path, nodes) as address:
        streamed = flwr_run(tmp_path, address, make_config(settings(tmp_path)), seconds=240)

    assert planted.is_file(), streamed + (tmp_path / "superlink.log").read_text()
    check(planted, tmp_path / "run")


def test_a_planted_secret_sends_a_bare_code_in_process(tmp_path: Path, digits: Prepared, planted: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "bract", "simulate", "--quiet"]
    for key, value in settings(tmp_path).items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2, done.stdout + done.stderr
    check(planted, tmp_path / "run")
