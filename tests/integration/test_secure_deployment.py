"""Secure sums on Flower's deployment runtime, where each message is answered by a fresh process."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.ledger.audit.audit import audit_ledger, kept_heads
from common.ledger.audit.read_only import open_read_only
from server.audit.audit import audit_run
from tests.support.clients.secure_clients import POLICY, homes_of, secure_clients, secure_config
from tests.support.network.federation import federation, flwr_run
from tests.support.server.failing_federation import federate, lines

pytestmark = pytest.mark.soak
SETTINGS: dict[str, Any] = {"num_clients": 3, "num_rounds": 2, "round_deadline": 240.0, "join_deadline": 240.0}
# Whole clients are protected, each by its own part of the noise.
WHOLE_CLIENTS = (
    POLICY.replace('["none", "dp-sgd"]', '["client-dp"]').replace("5.0", "50.0") + "accept-honest-shares = true\n"
)


def over_real_processes(root: Path, wards: list[Path], homes: list[Path], **more: Any) -> None:
    """Run over one SuperNode a client, each with the home of its holder."""
    config = secure_config(root / "deployed", **SETTINGS, **more)
    with federation(root, [f'bract-client="{folder}"' for folder in wards], homes=homes) as address:
        streamed = flwr_run(root, address, config, seconds=560)
    assert (root / "deployed" / "summary.json").is_file(), streamed
    assert json.loads((root / "deployed" / "summary.json").read_text())["status"] == "complete", streamed
    assert [line["clients"] for line in lines(root / "deployed")] == [3, 3]
    # At the end of the run nobody keeps a secret of its masks.
    for home in homes:
        assert not list((home / "holder" / "secure-sums").glob("*/*"))


def test_the_deployment_runtime_gives_the_bits_of_the_in_process_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    homes = homes_of(tmp_path, 3)
    wards = secure_clients(tmp_path, homes)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))

    over_real_processes(tmp_path, wards, homes)
    federate(wards, secure_config(tmp_path / "near", **SETTINGS), homes=homes)

    for file in ("model.safetensors", "card.json"):
        assert (tmp_path / "deployed" / "model" / file).read_bytes() == (
            tmp_path / "near" / "model" / file
        ).read_bytes()


def test_whole_clients_are_protected_by_shares_of_real_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client clips its own update and adds its part of the noise, and the server adds nothing."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    homes = homes_of(tmp_path, 3)
    wards = secure_clients(tmp_path, homes, WHOLE_CLIENTS)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    noise = {"privacy__noise_multiplier": 3.0, "privacy__target_epsilon": "", "privacy__clipping_norm": 0.5}

    over_real_processes(tmp_path, wards, homes, privacy__mechanism="client-dp", **noise)

    run = tmp_path / "deployed"
    statement = json.loads((run / "privacy.json").read_text())
    assert (statement["privacy_unit"], statement["noise_shares"]) == ("client", 2)
    assert statement["epsilon_max"] < statement["epsilon_max_alone"]
    assert audit_run(run).remarks.doubts == []
    for home in homes:
        ledger = home / "holder" / "ledger.sqlite"
        assert audit_ledger(ledger, kept_heads(run / "heads.jsonl")).verdict == "verified"
        with open_read_only(ledger) as opened:
            trained = [entry for entry in opened.entries() if entry.event.get("release") == "train"]
        assert [(entry.kind, entry.event["round"]) for entry in trained] == [
            (kind, number) for number in (1, 2) for kind in ("reserve", "commit")
        ]
