"""Secure sums on Flower's deployment runtime, where each message is answered by a fresh process."""

import json
from pathlib import Path

import pytest

from tests.support.clients.secure_clients import homes_of, secure_clients, secure_config
from tests.support.network.federation import federation, flwr_run
from tests.support.server.failing_federation import federate, lines

pytestmark = pytest.mark.soak


def test_the_deployment_runtime_gives_the_bits_of_the_in_process_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    homes = homes_of(tmp_path, 3)
    wards = secure_clients(tmp_path, homes)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    settings = {"num_clients": 3, "num_rounds": 2, "round_deadline": 240.0, "join_deadline": 240.0}
    config = secure_config(tmp_path / "deployed", **settings)
    nodes = [f'bract-client="{folder}"' for folder in wards]

    with federation(tmp_path, nodes, homes=homes) as address:
        streamed = flwr_run(tmp_path, address, config, seconds=560)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    federate(wards, secure_config(tmp_path / "near", **settings), homes=homes)

    assert (tmp_path / "deployed" / "summary.json").is_file(), streamed
    assert json.loads((tmp_path / "deployed" / "summary.json").read_text())["status"] == "complete", streamed
    assert [line["clients"] for line in lines(tmp_path / "deployed")] == [3, 3]
    for file in ("model.safetensors", "card.json"):
        assert (tmp_path / "deployed" / "model" / file).read_bytes() == (
            tmp_path / "near" / "model" / file
        ).read_bytes()
    for home in homes:
        assert not list((home / "holder" / "secure-sums").glob("*/*"))
