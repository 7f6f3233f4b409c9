"""Clients with images of their own on Flower's deployment runtime, by Flower's own commands: nothing is pinned."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.ledger.audit.audit import audit_ledger, kept_heads
from server.audit.audit import audit_run
from tests.support.clients.own_clients import SMALL, write_images
from tests.support.network.federation import federation, flwr_run
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Scalar] = SMALL | {"num-clients": 2}
SUMS: dict[str, Scalar] = {
    "privacy.mechanism": "dp-statistics",
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "data.image-size": 32,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def client_init(tmp_path: Path, number: int) -> str:
    """One client as a user makes it; gives its node configuration."""
    folder = tmp_path / f"ward-{number}"
    images = write_images(tmp_path / f"images-{number}", range(60 * number, 60 * number + 60))
    command = [sys.executable, "-m", "bract", "client", "init", str(folder), "--data", str(images)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert f"bract client start {folder}" in done.stdout
    policy = folder / "policy.toml"  # a node that is started by hand checks no code: see test_pinned_bundle
    text = re.sub(r'(?m)^bundle = ".*"$', 'bundle = ""', policy.read_text())
    policy.write_text(re.sub(r"(?m)^mechanisms = .*$", 'mechanisms = ["dp-sgd", "dp-statistics"]', text))
    return f'bract-client="{folder}"'


@pytest.mark.parametrize(
    ("mechanism", "rounds"), [("dp-sgd", 2), pytest.param("dp-statistics", 1, marks=pytest.mark.soak)]
)
def test_a_federation_of_own_images_runs_and_its_statement_follows_from_its_ledger(
    tmp_path: Path, home: Path, make_config: Callable[..., RunConfig], mechanism: str, rounds: int
) -> None:
    nodes, run = [client_init(tmp_path, number) for number in range(2)], tmp_path / "run"
    with federation(tmp_path, nodes) as address:
        settings = SETTINGS | (SUMS if mechanism == "dp-statistics" else {}) | {"output-dir": str(run)}
        streamed = flwr_run(tmp_path, address, make_config(settings), seconds=240)

    assert (run / "summary.json").is_file(), streamed
    summary, statement = (json.loads((run / name).read_text()) for name in ("summary.json", "privacy.json"))
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("complete", rounds, 2)
    assert (summary["accuracy"], summary["simulation_only"]) == (None, False)  # the server has no image to count on
    assert statement["ledger"].startswith("each client's own")
    assert any("2 of 2 clients have not pinned it" in line for line in statement["not_protected"])
    assert not (run / "partition.png").exists()
    report = audit_run(run)
    assert (report.verdict, report.remarks.doubts) == ("internally consistent", [])
    for heads in (run / "heads.jsonl", home / "server" / "heads.jsonl"):
        ledger = audit_ledger(home / "holder" / "ledger.sqlite", kept_heads(heads))
        assert (ledger.verdict, ledger.remarks.doubts) == ("verified", [])
        assert {found.rounds for found in ledger.runs} == {rounds}
        assert all(found.closed for found in ledger.runs)
